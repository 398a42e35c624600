"""LN tuning: train the scale (and shift) of the normalisation layers, nothing else.

y = g * norm(x) + c with g (h,) and, in LayerNorm, c (h,) trained from the base's own values, so
step 0 equals the base. Trainable = sum of the norms' own parameters: h each for RMSNorm, 2h for
LayerNorm, the head size for norms of queries and keys.
Source: Zhao et al. 2023, arXiv:2312.11420.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import Problem
from lab.methods import Context, register
from lab.methods.parts import patterns
from lab.methods.parts.peft_method import PeftMethod, cast_trainable, keeps_float32_adapters
from lab.methods.parts.script_lines import names_lines
from lab.methods.parts.target_modules import norms
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class LnTuningConfig:
    target_modules: list[str] | None = option(
        None,
        "Target modules",
        "Norm layers to train, e.g. input_layernorm. Not set: all of them.",
        names=True,
        formerly="targets",
    )


@register(
    "ln_tuning",
    title="LN tuning",
    source="arXiv:2312.11420",
    summary="Trains only the scales of the normalisation layers: the smallest change that touches "
    "every layer.",
    formula="y = g ⊙ norm(x) + c",
    parameter_formula="Σ of the norms' own parameters",
    description="Each layer of a transformer first brings its input to a common scale and then "
    "multiplies every channel by a learned factor. LN tuning trains these factors only. It is "
    "cheap in state, but the gradient still runs through the whole model, so it saves little time.",
    diagram_labels={"norm": "all"},
    config=LnTuningConfig,
    default_lr=2e-3,
    trains_only_vectors=True,
    can_merge=True,
)
class LnTuning(PeftMethod):
    peft_class = "LNTuningConfig"

    def check(self, model: Any, config: LnTuningConfig, context: Context) -> list[Problem]:
        norm_layers = norms(model)
        if not norm_layers:
            return [Problem("method", "this model has no normalisation layers with weights.")]
        names = [name for name, _ in norm_layers]
        choices = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
        nothing = f"names no normalisation layer of this model. Choose from: {choices}."
        return patterns.problems(
            "method.target_modules", config.target_modules or [], names, nothing
        )

    def peft_config_kwargs(self, config: LnTuningConfig) -> dict[str, Any]:
        return {"target_modules": config.target_modules}

    def peft_config_kwargs_for(
        self, model: Any, config: LnTuningConfig, context: Context
    ) -> dict[str, Any]:
        return {"target_modules": [name for name, _ in chosen(model, config)]}

    def script_before(self, config: LnTuningConfig) -> list[str]:
        lines = [
            "norms = [",
            "    name",
            "    for name, module in model.named_modules()",
            '    if "norm" in type(module).__name__.lower()',
            "    and any(True for _ in module.parameters(recurse=False))",
            "]",
        ]
        if config.target_modules is not None:
            lines.append(f"norms = {names_lines(config.target_modules, 'norms')}")
        return lines

    def script_settings(self, config: LnTuningConfig) -> dict[str, str]:
        return {"target_modules": "norms"}

    def script_after(self, config: LnTuningConfig) -> list[str]:
        return [
            "for weight in model.parameters():",
            "    if weight.requires_grad:  # in 16 bits small steps from 1.0 are lost",
            "        weight.data = weight.data.float()",
        ]

    def apply(self, model: Any, config: LnTuningConfig, context: Context) -> Any:
        import torch

        model = super().apply(model, config, context)
        # PEFT keeps the type of the copied norm; in bfloat16 small steps from 1.0 are lost
        return cast_trainable(model, torch.float32) if keeps_float32_adapters(context) else model

    def trainable_count(self, model: Any, config: LnTuningConfig, context: Context) -> int:
        return sum(
            weight.numel()
            for _, module in chosen(model, config)
            for weight in module.parameters(recurse=False)
        )


def chosen(model: Any, config: LnTuningConfig) -> list[tuple[str, Any]]:
    """(name, module) of the norms that train."""
    norm_layers = norms(model)
    if config.target_modules is None:
        return norm_layers
    names = patterns.all_named(config.target_modules, [name for name, _ in norm_layers])
    return [(name, module) for name, module in norm_layers if name in names]
