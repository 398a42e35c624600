"""Bottleneck adapters: small networks inside the frozen layers.

x -> x + s * up(act(down(x))), with h the hidden size, b the bottleneck: down (b, h), up (h, b),
both with bias. Houlsby: one after attention and one after the feed-forward part of each layer,
before the residual is added; Pfeiffer: one after the residual of the feed-forward part is added
(AdapterHub's `original_ln_before`, in layers that normalise first); feed-forward: the second of
Houlsby's two alone; parallel: beside the feed-forward part, reading its input. Up starts at zero,
so step 0 equals the base.
Trainable = L a (2 h b + b + h), with a = 2 for Houlsby, else 1.
Sources: Houlsby et al. 2019, arXiv:1902.00751, section 2.1; Pfeiffer et al. 2020,
arXiv:2005.00247, section 3; He et al. 2021, arXiv:2110.04366, section 4 (parallel).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.atomic_files import read_object, write_json
from lab.errors import LabError, Problem
from lab.methods import Context, Method, Unsupported, register
from lab.methods.parts.peft_method import keeps_float32_adapters
from lab.models import headers
from lab.models.decoder_structure import decoder_layers, hidden_size, sublayers
from lab.schema import option, parse

WEIGHTS, SETTINGS = "bottleneck.safetensors", "bottleneck.json"
NEAR_ZERO = 0.01


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig:
    kind: str = option(
        "houlsby",
        "Adapter placement",
        "houlsby (after attention and feed-forward), pfeiffer (after the residual is added behind "
        "feed-forward), feed-forward (before that) or parallel (beside feed-forward).",
        choices=("houlsby", "pfeiffer", "feed-forward", "parallel"),
    )
    size: int | None = option(
        None,
        "Bottleneck size",
        "Hidden units of the adapter. Not set: hidden size / reduction factor.",
        min=1,
        max=65_536,
    )
    reduction: float = option(
        16.0, "Reduction factor", "Hidden size divided by bottleneck size.", min=1.0, max=4096
    )
    activation: str = option(
        "silu",
        "Activation",
        "Non-linearity between the two projections. With relu, small bottlenecks may die.",
        choices=("silu", "gelu", "relu", "tanh"),
    )
    dropout: float = option(
        0.0, "Dropout", "Dropout probability on the adapter output.", min=0.0, max=0.95
    )
    scale: float = option(
        1.0,
        "Scaling",
        "Factor s on the adapter output; 4 works well for parallel adapters.",
        above=0.0,
        max=1000.0,
    )
    init: str = option(
        "zero",
        "Initialisation",
        "Up-projection: zero (identical to the base model at step 0) or near-zero (normal, std "
        "0.01, as Houlsby et al.).",
        choices=("zero", "near-zero"),
        formerly="start",
    )


@register(
    "bottleneck",
    title="Bottleneck adapters",
    source="arXiv:1902.00751",
    summary="Puts a small two-layer network into each frozen decoder layer. Slower at inference "
    "than LoRA, since it cannot be merged, but non-linear.",
    formula="x ← x + s · up(act(down(x)))",
    parameter_formula="L · a · (2hb + b + h), a = 2 (Houlsby) or 1",
    description="The oldest adapter: inside each layer the hidden state is squeezed to b numbers, "
    "passed through a non-linearity, widened again and added to itself. The way back starts at "
    "zero, so training begins exactly at the base. Because of the non-linearity it cannot be "
    "folded into the weights afterwards, so answers take a little longer.",
    diagram_labels={"attention": "adapter", "feed_forward": "adapter"},
    config=BottleneckConfig,
    default_lr=3e-4,
    can_script=Unsupported("PEFT has no bottleneck adapters; they are the lab's own."),
)
class BottleneckAdapters(Method):
    def check(self, model: Any, config: BottleneckConfig, context: Context) -> list[Problem]:
        problems = []
        try:
            for layer in decoder_layers(model)[1]:
                sublayers(layer)
        except LabError as error:
            problems.append(Problem("method.name", str(error)))
        return problems

    def trainable_count(self, model: Any, config: BottleneckConfig, context: Context) -> int:
        h, b = hidden_size(model), bottleneck_size(hidden_size(model), config)
        a_layer = 2 if config.kind == "houlsby" else 1
        return len(decoder_layers(model)[1]) * a_layer * (2 * h * b + b + h)

    def apply(self, model: Any, config: BottleneckConfig, context: Context) -> Any:
        import torch

        model.requires_grad_(False)
        dtype = torch.float32 if keeps_float32_adapters(context) else torch.bfloat16
        _insert(model, config, dtype)
        model.bottleneck_settings = dataclasses.asdict(config)
        return model

    def save(self, model: Any, folder: Path) -> None:
        from safetensors.torch import save_file

        from lab.methods.parts import bottleneck_modules

        tensors = {
            f"{name}.{key}": weight.detach().contiguous()
            for name, adapter in bottleneck_modules.adapters(model).items()
            for key, weight in adapter.named_parameters()
        }
        save_file(tensors, folder / WEIGHTS)
        write_json(folder / SETTINGS, {"v": 2, **model.bottleneck_settings})

    def load(self, base: Any, folder: Path) -> Any:
        import torch
        from safetensors.torch import load_file

        from lab.models.weights import empty_like

        self.check_saved(empty_like(base), folder)
        config = _saved_settings(folder)
        tensors = load_file(folder / WEIGHTS)
        _insert(base, config, next(iter(tensors.values())).dtype)
        base.bottleneck_settings = dataclasses.asdict(config)
        base_weights = dict(base.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors.items():
                base_weights[name].copy_(tensor)
        return base

    def check_saved(self, base: Any, folder: Path) -> None:
        import torch

        from lab.methods.parts import bottleneck_modules

        stored = headers.read_if_there(folder / WEIGHTS)
        if not stored:
            raise LabError(f"{folder} has no {WEIGHTS}.", "The result is incomplete.")
        with torch.device("meta"):
            _insert(base, _saved_settings(folder), torch.float32)
        needed = {
            f"{name}.{key}": tuple(weight.shape)
            for name, adapter in bottleneck_modules.adapters(base).items()
            for key, weight in adapter.named_parameters()
        }
        if needed != {name: tensor.shape for name, tensor in stored.items()}:
            raise LabError(
                f"{WEIGHTS} does not hold the adapters that {SETTINGS} describes for this base "
                "model.",
                "It is damaged, or belongs to another base model.",
            )


def _saved_settings(folder: Path) -> BottleneckConfig:
    problems: list[Problem] = []
    saved = read_object(folder / SETTINGS)
    if saved is None:
        raise LabError(f"{folder} has no readable {SETTINGS}.", "The result is incomplete.")
    if saved.pop("v", 1) == 1 and saved.get("kind") == "pfeiffer":
        saved["kind"] = "feed-forward"  # what the first version meant by it
    config = parse(BottleneckConfig, saved, "", problems)
    if problems:
        raise LabError(
            f"{SETTINGS}: {problems[0].field} {problems[0].message}", "The result is damaged."
        )
    return config


def bottleneck_size(h: int, config: BottleneckConfig) -> int:
    return config.size if config.size is not None else max(1, round(h / config.reduction))


def _insert(model: Any, config: BottleneckConfig, dtype: Any) -> None:
    from lab.methods.parts import bottleneck_modules

    bottleneck_modules.insert(
        model,
        kind=config.kind,
        size=bottleneck_size(hidden_size(model), config),
        activation=config.activation,
        dropout=config.dropout,
        scale=config.scale,
        start_std=NEAR_ZERO if config.init == "near-zero" else 0.0,
        dtype=dtype,
    )
