"""How many directions the updates of a low-rank method use while it trains.

Of each update ΔW = B A only the two factors are decomposed (by QR, then the singular values of an
(R, R) matrix), and of a deep model only some of them, so that it takes a moment. Nothing here draws
a random number or touches a weight: losses are what they would be without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lab import singular_values
from lab.methods.parts.low_rank_factors import low_rank_factors

MAX_MATRICES = 24  # of a model that are looked at
LEAST_RANK = 4  # below which every update uses few directions
COLLAPSED = 0.2  # of the rank that an update could have
FALLEN = 0.5  # of the highest that was seen


class UpdateRanks:
    """The ranks at every evaluation. `highest`: the median effective rank at its highest so far,
    which a checkpoint keeps."""

    def __init__(self, highest: float = 0.0) -> None:
        self.highest = highest
        self.has_warned = False
        self._figures: dict[str, float] = {}

    def measure(self, model: Any) -> dict[str, float]:
        """The metrics `rank/...`: medians over at most MAX_MATRICES updates, first and last layer
        among them; {} for a model without low-rank factors, or whose updates are still zero."""
        factors = list(low_rank_factors(model))
        spectra = [update_values(left, right) for left, right in evenly(factors)]
        known = [values for values in spectra if len(singular_values.real(values))]
        self._figures = {}
        if known:
            self._figures = {
                "rank/possible": float(np.median([len(values) for values in known])),
                "rank/effective": _median(singular_values.effective_rank, known),
                "rank/stable": _median(singular_values.stable_rank, known),
                "rank/condition": _median(singular_values.condition_number, known),
            }
            self.highest = max(self.highest, self._figures["rank/effective"])
        return dict(self._figures)

    def collapse(self) -> str:
        """What to tell a person once the last figures show that the updates have collapsed into few
        directions; empty otherwise, and the second time."""
        effective = self._figures.get("rank/effective", 0.0)
        possible = self._figures.get("rank/possible", 0.0)
        if self.has_warned or possible < LEAST_RANK:
            return ""
        if effective > COLLAPSED * possible or effective > FALLEN * self.highest:
            return ""
        self.has_warned = True
        return (
            f"of rank {possible:.0f} they use {effective:.1f} directions, after {self.highest:.1f} "
            "at their widest. A learning rate or weight decay that is too high does that: lower "
            "it, or take a lower rank."
        )


def evenly(factors: list[Any]) -> list[Any]:
    """At most MAX_MATRICES of them, the first and the last among them."""
    if len(factors) <= MAX_MATRICES:
        return factors
    positions = np.linspace(0, len(factors) - 1, MAX_MATRICES).round().astype(int)
    return [factors[position] for position in positions]


@torch.no_grad()
def update_values(left_OR: torch.Tensor, right_RI: torch.Tensor) -> np.ndarray:
    """(R,) singular values of the product, largest first; none where it is not finite."""
    triangles = [torch.linalg.qr(part.float(), mode="r")[1] for part in (left_OR, right_RI.T)]
    inner = (triangles[0] @ triangles[1].T).double().cpu()
    if not torch.isfinite(inner).all():
        return np.zeros(0)
    return np.asarray(torch.linalg.svdvals(inner))


def _median(figure: Any, spectra: list[np.ndarray]) -> float:
    return float(np.median([figure(values) for values in spectra]))
