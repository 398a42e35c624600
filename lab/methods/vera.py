"""VeRA: one shared random projection, and two small trained vectors a layer.

y = W0 x + b * (B (d * (A x))), with A (r, d_in) and B (d_out, r) random, frozen and shared by all
layers (cut to each layer's size), d (r,) and b (d_out,) trained; b is zero at the start, so step 0
equals the base. Trainable = sum over targets of r + d_out.
Source: Kopiczko et al. 2023, arXiv:2310.11454, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.methods import Context, register
from lab.methods.parts.peft_method import PeftMethod
from lab.methods.parts.target_modules import peft_targets, target_layers, targets_option
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class VeraConfig:
    rank: int = option(
        256,
        "Rank",
        "Rank of the shared random projection; high ranks cost almost nothing.",
        min=1,
        max=16_384,
    )
    dropout: float = option(
        0.0, "Dropout", "Dropout probability on the adapter input.", min=0.0, max=0.95
    )
    d_initial: float = option(
        0.1,
        "Initial d",
        "Initial value of every entry of d (PEFT: d_initial).",
        above=0.0,
        max=10.0,
        formerly="d_start",
    )
    target_modules: str | list[str] = targets_option()
    seed: int = option(
        0, "Projection seed", "Seed of the shared random projection.", min=0, max=2**31 - 1
    )


@register(
    "vera",
    title="VeRA",
    source="arXiv:2310.11454",
    summary="Freezes random projections that all layers share and trains two vectors a layer: ten "
    "times fewer parameters than LoRA.",
    formula="y = W₀x + b ⊙ B (d ⊙ A x), A and B frozen and shared",
    parameter_formula="Σ over targets of r + d_out",
    description="LoRA learns both low-rank matrices of each layer. VeRA draws one random pair for "
    "the whole model, freezes it, and learns only how strongly each of its directions "
    "counts in each layer. What is stored is a handful of vectors; the random pair "
    "can be drawn again from its seed, but is saved as well, so that the result "
    "does not depend on it.",
    diagram_labels={"attention": "b, d", "feed_forward": "b, d"},
    config=VeraConfig,
    default_lr=5e-3,
    trains_only_vectors=True,
    can_merge=True,
)
class Vera(PeftMethod):
    peft_class = "VeraConfig"

    def peft_config_kwargs(self, config: VeraConfig) -> dict[str, Any]:
        return {
            "r": config.rank,
            "vera_dropout": config.dropout,
            "d_initial": config.d_initial,
            "target_modules": peft_targets(config.target_modules),
            "projection_prng_key": config.seed,
        }

    def trainable_count(self, model: Any, config: VeraConfig, context: Context) -> int:
        return sum(
            config.rank + layer.d_out for layer in target_layers(model, config.target_modules)
        )
