"""Paired measurements: the ratio of each pair, and its confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

CHANCE = 0.05  # that the median is below the bound


def lower_bound(ratios: Sequence[float]) -> float | None:
    """A bound that the median of what `ratios` were drawn from exceeds with 95 % confidence.

    The inverted sign test: the k-th smallest value is above the median only if fewer than
    k of n values fell below it, a matter of n fair coins, whatever the distribution. None for
    fewer than five values, which cannot give that confidence.
    """
    count = len(ratios)
    total, rank = 0.0, 0
    while total + math.comb(count, rank) / 2**count <= CHANCE:
        total += math.comb(count, rank) / 2**count
        rank += 1
    return sorted(ratios)[rank - 1] if rank else None


def spread(ratios: Sequence[float]) -> dict[str, float | int | None]:
    """{"pairs", "median", "lower", "smallest", "largest"} of paired ratios."""
    return {
        "pairs": len(ratios),
        "median": statistics.median(ratios),
        "lower": lower_bound(ratios),
        "smallest": min(ratios),
        "largest": max(ratios),
    }


def far_apart(ours: Sequence[float], theirs: Sequence[float], tolerance: float) -> str:
    """Why two series of losses are not those of equal work; empty if they are.

    Compared step by step, each within `tolerance` of the larger one.
    """
    if len(ours) != len(theirs):
        return f"{len(ours)} steps against {len(theirs)}"
    for step, (loss, other) in enumerate(zip(ours, theirs, strict=True), 1):
        # not "abs(...) > limit": a loss that is not a number equals nothing
        if not abs(loss - other) <= tolerance * max(abs(loss), abs(other)):
            return f"loss {loss:.5f} against {other:.5f} at step {step}"
    return ""
