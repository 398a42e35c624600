"""LoRA without regret: LoRA equals full fine-tuning until its capacity is used up.

LoRA on all linear layers, at about ten times full's learning rate, fifteen in short runs; more is
lost to full at a large batch. Capacity: a parameter holds about 2 bits, and a token of the data
gives at most about 1, so that the adapter has to have half as many parameters as there are tokens
to learn from. The smallest rank of RANKS that does is taken.
Source: Schulman et al. 2025, "LoRA Without Regret", Thinking Machines Lab.
"""

from __future__ import annotations

from functools import lru_cache

from lab.advise import shapes
from lab.advise.case import AdviceCase, model_of
from lab.advise.rules import Approach, RuleAnswer, register

BITS_A_PARAMETER, BITS_A_TOKEN = 2.0, 1.0
RANKS = (8, 16, 32, 64, 128, 256)
TIMES_FULL_RATE, TIMES_IN_SHORT_RUNS = 10, 15


@register(
    "without-regret",
    title="LoRA without regret",
    inputs=("parameters", "model", "examples", "tokens_per_example"),
    source="Schulman et al. 2025, LoRA Without Regret, Thinking Machines Lab",
)
def judge(case: AdviceCase) -> RuleAnswer:
    each = adapter_parameters(model_of(case), case.parameters or 0.0)
    need = case.tokens * BITS_A_TOKEN / BITS_A_PARAMETER
    rank = next((rank for rank in RANKS if rank * each >= need), None)
    if rank is None:
        return RuleAnswer(
            Approach.FULL,
            Approach.FULL.in_words,
            f"{case.tokens:,} tokens may hold more than rank {RANKS[-1]} learns "
            f"({RANKS[-1] * each:,.0f} parameters): LoRA would fall behind.",
        )
    return RuleAnswer(
        Approach.LORA,
        f"LoRA r{rank}, all linear layers",
        f"{case.tokens:,} tokens need at most {need:,.0f} parameters; rank {rank} on all linear "
        f"layers has {rank * each:,.0f}: as good as full, at {TIMES_FULL_RATE} to "
        f"{TIMES_IN_SHORT_RUNS} times its learning rate.",
        ("E2", "E3"),
    )


@lru_cache(maxsize=4096)
def adapter_parameters(model: str, parameters: float) -> float:
    """Of an adapter of rank 1 on all linear layers; by the nearest shipped config, in proportion
    to the square root of the size, where the model's own shapes are not at hand."""
    return shapes.lora_parameters(model, parameters)
