"""P-tuning: virtual tokens made by a small trained network.

input = [f(e)_1 ... f(e)_n, E[x_1] ... E[x_T]], with e (n, h) and the network f trained: an MLP
h -> m -> m -> h with ReLU, or a bidirectional LSTM of width m and an MLP 2m -> 2m -> h. For
answering, f(e) is computed once and stored; training goes on from e and f, which checkpoints keep.
Trainable = n h + (h m + m) + (m m + m) + (m h + h) with the MLP.
Source: Liu et al. 2021, arXiv:2103.10385.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.methods import Context, register
from lab.methods.parts.peft_method import PeftMethod
from lab.methods.parts.virtual_tokens import NO_16_BITS, NO_PACKING, NO_START, count_option
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class PtuningConfig:
    num_virtual_tokens: int = count_option()
    encoder: str = option(
        "mlp",
        "Prompt encoder",
        "Network that produces the virtual tokens: MLP or LSTM.",
        choices=("mlp", "lstm"),
    )
    width: int = option(128, "Encoder hidden size", "Width m of the network.", min=1, max=16_384)
    layers: int = option(
        2, "Encoder layers", "LSTM layers; the MLP always has three.", min=1, max=8
    )
    dropout: float = option(
        0.0, "Encoder dropout", "Dropout between LSTM layers.", min=0.0, max=0.9
    )


@register(
    "ptuning",
    title="P-tuning",
    source="arXiv:2103.10385",
    summary="Prompt tuning whose vectors are made by a small network, which makes them easier to "
    "find. The network is dropped when training ends.",
    formula="input = [f(e)₁ … f(e)_n, E[x₁] … E[x_T]]",
    parameter_formula="n h + (h m + m) + (m² + m) + (m h + h) with the MLP",
    description="Virtual tokens trained independently converge badly. P-tuning lets a small "
    "network produce all of them, so that they move together. Only its output is kept "
    "for answering: the result is as small as prompt tuning's, while training holds "
    "the network as well.",
    diagram_labels={"input": "f(e)"},
    config=PtuningConfig,
    default_lr=3e-3,
    can_pack=NO_PACKING,
    can_use_bfloat16_adapters=NO_16_BITS,
    is_identity_at_start=NO_START,
)
class Ptuning(PeftMethod):
    peft_class = "PromptEncoderConfig"

    def peft_config_kwargs(self, config: PtuningConfig) -> dict[str, Any]:
        settings = {
            "num_virtual_tokens": config.num_virtual_tokens,
            "encoder_reparameterization_type": config.encoder.upper(),
            "encoder_hidden_size": config.width,
        }
        if config.encoder == "lstm":
            settings |= {"encoder_num_layers": config.layers, "encoder_dropout": config.dropout}
        return settings

    def trainable_count(self, model: Any, config: PtuningConfig, context: Context) -> int:
        h: int = model.get_input_embeddings().weight.shape[1]
        n, m = config.num_virtual_tokens, config.width
        if config.encoder == "mlp":
            return n * h + (h * m + m) + (m * m + m) + (m * h + h)
        inputs = [h, *[2 * m] * (config.layers - 1)]
        lstm = sum(2 * 4 * m * (size + m + 2) for size in inputs)
        return n * h + lstm + (2 * m * 2 * m + 2 * m) + (2 * m * h + h)

    def virtual_tokens(self, config: PtuningConfig) -> tuple[int, int]:
        return (config.num_virtual_tokens, 0)
