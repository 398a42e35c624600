"""OFT: rotate the input of each weight, block by block, by an orthogonal matrix.

y = W0 R x + bias, with R (d_in, d_in) block-diagonal in d_in / b blocks (b, b). Each block is the
Cayley transform (I + S)(I - S)^-1 of a skew-symmetric S with b (b - 1) / 2 trained entries (here
by the first terms of the Neumann series); S is zero at the start, so step 0 equals the base.
Rotations keep the lengths of the rows of W0 and the angles between them.
Trainable = sum over targets of (d_in / b) b (b - 1) / 2; one block's worth with shared blocks.
Source: Qiu et al. 2023, arXiv:2306.07280; Liu et al. 2025, arXiv:2506.19847 (OFTv2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import Problem
from lab.methods import Context, Unsupported, register
from lab.methods.parts.peft_method import PeftMethod
from lab.methods.parts.target_modules import peft_targets, target_layers, targets_option
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class OftConfig:
    block_size: int = option(
        32,
        "Block size",
        "Size of a rotated block; must divide the input size of every target module.",
        min=2,
        max=4096,
    )
    block_share: bool = option(
        False, "Share blocks", "Use one rotation for all blocks of a weight."
    )
    target_modules: str | list[str] = targets_option("are rotated")


@register(
    "oft",
    title="OFT",
    source="arXiv:2306.07280",
    summary="Rotates the frozen weights by trained rotations, which keeps the angles between "
    "neurons and with them much of what the base knows.",
    formula="y = W₀ R x, R orthogonal and block-diagonal",
    parameter_formula="Σ over targets of (d_in / b) · b (b − 1) / 2",
    description="LoRA adds something to a weight. OFT turns it: the inputs pass through a rotation "
    "first, one small block at a time. A rotation changes directions but neither lengths nor the "
    "angles between neurons, which is meant to keep the base's knowledge intact.",
    diagram_labels={"attention": "rotate R", "feed_forward": "rotate R"},
    config=OftConfig,
    default_lr=1e-3,
    can_merge=True,
    can_train_conv1d=Unsupported(
        "PEFT's OFT knows nn.Linear only. Choose lora, vera or ia3 for GPT-2."
    ),
)
class Oft(PeftMethod):
    peft_class = "OFTConfig"

    def check(self, model: Any, config: OftConfig, context: Context) -> list[Problem]:
        problems = super().check(model, config, context)
        if problems:
            return problems
        sizes = sorted({layer.d_in for layer in target_layers(model, config.target_modules)})
        odd = [size for size in sizes if size % config.block_size]
        if odd:
            problems.append(
                Problem(
                    "method.block_size",
                    f"is {config.block_size}, which does not divide {', '.join(map(str, odd))}, "
                    f"the inputs of some targets. All of them divide by {_common(sizes)}.",
                )
            )
        return problems

    def peft_config_kwargs(self, config: OftConfig) -> dict[str, Any]:
        return {
            "r": 0,
            "oft_block_size": config.block_size,
            "block_share": config.block_share,
            "target_modules": peft_targets(config.target_modules),
        }

    def trainable_count(self, model: Any, config: OftConfig, context: Context) -> int:
        size = config.block_size
        return sum(
            (1 if config.block_share else layer.d_in // size) * (size * (size - 1) // 2)
            for layer in target_layers(model, config.target_modules)
        )


def _common(sizes: list[int]) -> int:
    """The largest power of two that divides all sizes."""
    power = 1
    while all(size % (2 * power) == 0 for size in sizes):
        power *= 2
    return power
