"""LoKr: a Kronecker product as the update.

W = W0 + (alpha / r) C (x) (B A). d_in = m n and d_out = l k are split into two factors each, the
smaller first; C is (l, m), B (k, r), A (r, n). C is zero at the start, so step 0 equals the base.
A factor that is not larger than its low-rank form (r >= max(k, n) / 2) is kept whole, and with
`decompose_both` C is split in two as well where r < max(l, m) / 2.
Trainable = sum over targets of l m + r (k + n).
Source: Edalati et al. 2022, arXiv:2212.10650 (KronA); Yeh et al. 2023, arXiv:2309.14859 (LyCORIS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.methods import Context, Unsupported, register
from lab.methods.parts.peft_method import PeftMethod
from lab.methods.parts.target_modules import peft_targets, target_layers, targets_option
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class LokrConfig:
    rank: int = option(8, "Rank", "Rank r of the larger factor.", min=1, max=1024)
    alpha: float = option(
        16.0, "Alpha", "The update is scaled by alpha / rank.", above=0.0, max=65_536
    )
    rank_dropout: float = option(
        0.0, "Rank dropout", "Probability of dropping a row of the update.", min=0.0, max=0.95
    )
    module_dropout: float = option(
        0.0, "Module dropout", "Probability of dropping a layer's whole update.", min=0.0, max=0.95
    )
    factor: int = option(
        -1,
        "Decompose factor",
        "Target size of the smaller Kronecker factor; -1: as square as possible.",
        min=-1,
        max=65_536,
        excluded=(0,),
    )
    decompose_both: bool = option(
        False, "Decompose both", "Use a low-rank form for the smaller factor too."
    )
    target_modules: str | list[str] = targets_option()


@register(
    "lokr",
    title="LoKr",
    source="arXiv:2212.10650",
    summary="The update is a Kronecker product: a small block pattern, repeated at scale. Few "
    "parameters, high rank.",
    formula="W = W₀ + (α/r) C ⊗ (B A)",
    parameter_formula="Σ over targets of l m + r (k + n), where d_in = m n and d_out = l k",
    description="A Kronecker product places a scaled copy of one matrix at every entry of another. "
    "Two small matrices thus describe a large one whose rank is the product of their ranks. It "
    "suits changes that repeat across the weight, and is the cheapest of the full-rank updates.",
    diagram_labels={"attention": "C ⊗ B·A", "feed_forward": "C ⊗ B·A"},
    config=LokrConfig,
    default_lr=1e-3,
    can_merge=True,
    can_train_conv1d=Unsupported(
        "PEFT's LoKr knows nn.Linear only. Choose lora, vera or ia3 for GPT-2."
    ),
)
class Lokr(PeftMethod):
    peft_class = "LoKrConfig"

    def peft_config_kwargs(self, config: LokrConfig) -> dict[str, Any]:
        return {
            "r": config.rank,
            "alpha": config.alpha,
            "rank_dropout": config.rank_dropout,
            "module_dropout": config.module_dropout,
            "decompose_factor": config.factor,
            "decompose_both": config.decompose_both,
            "target_modules": peft_targets(config.target_modules),
        }

    def trainable_count(self, model: Any, config: LokrConfig, context: Context) -> int:
        total = 0
        for layer in target_layers(model, config.target_modules):
            small_in, large_in = split(layer.d_in, config.factor)
            small_out, large_out = split(layer.d_out, config.factor)
            small, large = (small_out, small_in), (large_out, large_in)
            is_split = config.decompose_both and config.rank < max(small) / 2
            total += config.rank * sum(small) if is_split else small[0] * small[1]
            total += (
                config.rank * sum(large) if config.rank < max(large) / 2 else large[0] * large[1]
            )
        return total


def split(size: int, factor: int) -> tuple[int, int]:
    """`size` as a product of two numbers, the smaller first: (factor, rest) where it divides,
    else the most even pair whose smaller part is at most `factor` (-1: no limit)."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = size if factor == -1 else factor
    small = max(
        divisor
        for divisor in range(1, int(size**0.5) + 1)
        if size % divisor == 0 and divisor <= most
    )
    return small, size // small
