"""LoHa: the elementwise product of two low-rank matrices as the update.

W = W0 + (alpha / r) (B1 A1) * (B2 A2), with A (r, d_in) and B (d_out, r) twice; the second pair's
A is zero at the start, so step 0 equals the base. The product can reach rank r^2.
Trainable = sum over targets of 2 r (d_in + d_out).
Source: Hyeon-Woo et al. 2021, arXiv:2108.06098 (FedPara), section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.methods import Context, Unsupported, register
from lab.methods.parts.peft_method import PeftMethod
from lab.methods.parts.target_modules import peft_targets, target_layers, targets_option
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class LohaConfig:
    rank: int = option(8, "Rank", "Rank r of each of the two factors.", min=1, max=1024)
    alpha: float = option(
        16.0, "Alpha", "The update is scaled by alpha / rank.", above=0.0, max=65_536
    )
    rank_dropout: float = option(
        0.0, "Rank dropout", "Probability of dropping a row of the update.", min=0.0, max=0.95
    )
    module_dropout: float = option(
        0.0, "Module dropout", "Probability of dropping a layer's whole update.", min=0.0, max=0.95
    )
    target_modules: str | list[str] = targets_option()


@register(
    "loha",
    title="LoHa",
    source="arXiv:2108.06098",
    summary="An update of rank up to r² from two pairs of rank r, multiplied entry by entry.",
    formula="W = W₀ + (α/r) (B₁A₁) ⊙ (B₂A₂)",
    parameter_formula="Σ over targets of 2 r (d_in + d_out)",
    description="Two low-rank matrices are multiplied entry by entry. That costs twice the "
    "parameters of LoRA at the same rank, but the result can have the square of it. "
    "The whole update is recomputed in each step, so a step is slower than LoRA's.",
    diagram_labels={"attention": "B₁A₁ ⊙ B₂A₂", "feed_forward": "B₁A₁ ⊙ B₂A₂"},
    config=LohaConfig,
    default_lr=1e-3,
    can_merge=True,
    can_train_conv1d=Unsupported(
        "PEFT's LoHa knows nn.Linear only. Choose lora, vera or ia3 for GPT-2."
    ),
)
class Loha(PeftMethod):
    peft_class = "LoHaConfig"

    def peft_config_kwargs(self, config: LohaConfig) -> dict[str, Any]:
        return {
            "r": config.rank,
            "alpha": config.alpha,
            "rank_dropout": config.rank_dropout,
            "module_dropout": config.module_dropout,
            "target_modules": peft_targets(config.target_modules),
        }

    def trainable_count(self, model: Any, config: LohaConfig, context: Context) -> int:
        layers = target_layers(model, config.target_modules)
        return sum(2 * config.rank * (layer.d_in + layer.d_out) for layer in layers)
