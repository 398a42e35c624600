"""What the singular values of a matrix say of its rank."""

from __future__ import annotations

import numpy as np

TINY = 1e-7  # times the largest singular value: rounding of float32, which is nothing


def real(values: np.ndarray) -> np.ndarray:
    """Of (R,) singular values, largest first, those that are not rounding, as float64."""
    values = np.asarray(values, dtype=np.float64)
    return values[values > TINY * values[0]] if len(values) and values[0] > 0 else values[:0]


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of their shares (Roy and Vetterli 2007); 0 of a matrix of zeros."""
    known = real(values)
    if not len(known):
        return 0.0
    share = known / known.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def stable_rank(values: np.ndarray) -> float:
    """The energy (sum of squares) over that of the largest; 0 of a matrix of zeros."""
    known = real(values)
    return float((known**2).sum() / known[0] ** 2) if len(known) else 0.0


def condition_number(values: np.ndarray) -> float:
    """The largest over the smallest that is not rounding; 0 of a matrix of zeros."""
    known = real(values)
    return float(known[0] / known[-1]) if len(known) else 0.0
