"""Top layers fully, LoRA below: capacity near the output, a low-rank update under it.

The last k decoder layers train all of their weights; every linear layer of the others gets
y = W0 x + (alpha / r) B A x, with B zero at the start, so step 0 equals the base.
Trainable = weights of the top k layers + sum over linear layers below of r (d_in + d_out).
Sources: Hu et al. 2021, arXiv:2106.09685 (LoRA); Lee et al. 2019, arXiv:1911.03090 (top layers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import Problem
from lab.formatting import quantity
from lab.methods import Context, Unsupported, register
from lab.methods.parts.lora_with_base import (
    LoraAndBase,
    OpenedConfig,
    add_lora,
    linear_in_layers,
    lora_count,
    unfreeze_layers,
)
from lab.models.decoder_structure import decoder_layers
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class TopLayersLoraConfig(OpenedConfig):
    top_layers: int = option(
        1,
        "Fully trained layers",
        "How many of the last decoder layers train in full.",
        min=1,
        max=1000,
    )


@register(
    "top_layers_lora",
    title="Top layers + LoRA",
    source="arXiv:2106.09685",
    summary="The last layers train fully, the ones below get a low-rank update. More capacity "
    "than LoRA where it is near the output, far less memory than full training.",
    formula="top k layers: θ ← θ − η ∇L; below: y = W₀x + (α/r) B A x",
    parameter_formula="weights of the top k layers + Σ over linear layers below of r (d_in + "
    "d_out)",
    description="The last layers are nearest to the words that come out and change most in full "
    "fine-tuning. Here they may change freely, at a tenth of the adapters' rate, "
    "while the layers below get only low-rank updates.",
    diagram_labels={"attention": "B·A, top: all", "feed_forward": "B·A, top: all"},
    config=TopLayersLoraConfig,
    default_lr=2e-4,
    can_script=Unsupported("two learning rates and opened layers are the lab's own."),
    can_quantise_base=Unsupported(
        "its top layers train as they are, and 4-bit weights take no gradient."
    ),
)
class TopLayersLora(LoraAndBase):
    def check(self, model: Any, config: TopLayersLoraConfig, context: Context) -> list[Problem]:
        count = len(decoder_layers(model)[1])
        if config.top_layers < count:
            return []
        return [
            Problem(
                "method.top_layers",
                f"is {config.top_layers}; the model has {quantity(count, 'layer')}, so none "
                "would be left for "
                "LoRA. Give fewer, or choose full.",
            )
        ]

    def trainable_count(self, model: Any, config: TopLayersLoraConfig, context: Context) -> int:
        layers = decoder_layers(model)[1]
        opened: int = sum(
            w.numel() for layer in layers[-config.top_layers :] for w in layer.parameters()
        )
        return opened + lora_count(model, _below(model, config), config.rank)

    def apply(self, model: Any, config: TopLayersLoraConfig, context: Context) -> Any:
        count = len(decoder_layers(model)[1])
        model = add_lora(model, _below(model, config), config, context)
        unfreeze_layers(model, range(count - config.top_layers, count))
        return model


def _below(model: Any, config: TopLayersLoraConfig) -> list[str]:
    return linear_in_layers(model, range(len(decoder_layers(model)[1]) - config.top_layers))
