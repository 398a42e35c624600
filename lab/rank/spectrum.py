"""Singular values of updates, and what they say of the rank.

Legend: an update ΔW is (O, I) and of rank R; of an adapter it is B A with B (O, R) and A (R, I).
The energy of a matrix is the sum of its squared singular values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lab import singular_values

ENERGY = 0.95  # of an update that the needed rank holds
MAX_VALUES = 64  # singular values of a matrix that are written down


@dataclass(frozen=True)
class MatrixSpectrum:
    """One matrix. `rank`: what the update could have had. `needed`: singular values that hold 95 %
    of its energy. `effective`: exp of the entropy of their shares (Roy and Vetterli 2007).
    `stable`: energy over that of the largest. `condition`: largest over smallest that is not
    rounding. `intruders`: None where they were not looked for."""

    name: str
    shape: tuple[int, int]
    rank: int
    values: tuple[float, ...]
    norm: float
    needed: int
    effective: float
    stable: float
    condition: float
    intruders: int | None = None


def low_rank_svd(
    left_OR: np.ndarray, right_RI: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(U (O, R), values (R,), V^T (R, I)) of the product, which is never formed: by QR of both
    factors and the SVD of an (R, R) matrix."""
    q_left, r_left = np.linalg.qr(left_OR)
    q_right, r_right = np.linalg.qr(right_RI.T)
    u, values, vt = np.linalg.svd(r_left @ r_right.T)
    return q_left @ u, values, vt @ q_right.T


def spectrum(
    name: str,
    shape: tuple[int, int],
    rank: int,
    values: np.ndarray,
    intruders: int | None = None,
    energy: float = ENERGY,
) -> MatrixSpectrum:
    """`values` are (R,), largest first. An update of nothing has rank 0 in every sense."""
    real = singular_values.real(values)
    if not len(real):
        return MatrixSpectrum(name, shape, rank, (), 0.0, 0, 0.0, 0.0, 0.0, intruders)
    return MatrixSpectrum(
        name=name,
        shape=shape,
        rank=rank,
        values=tuple(float(value) for value in real[:MAX_VALUES]),
        norm=float(np.sqrt((real**2).sum())),
        needed=energy_rank(real, energy),
        effective=singular_values.effective_rank(real),
        stable=singular_values.stable_rank(real),
        condition=singular_values.condition_number(real),
        intruders=intruders,
    )


def energy_rank(values: np.ndarray, energy: float = ENERGY) -> int:
    """The fewest singular values, largest first, that hold this share of the energy."""
    cumulative = np.cumsum(np.asarray(values, dtype=np.float64) ** 2)
    return int(np.searchsorted(cumulative, energy * cumulative[-1] * (1 - 1e-12))) + 1


def energy_kept(matrices: Sequence[np.ndarray], most: int) -> np.ndarray:
    """(most,) share of the energy of all matrices that each keeps at rank 1, 2, … `most`."""
    total = sum(float((values**2).sum()) for values in matrices)
    energy = np.zeros(most)
    for values in matrices:
        squares = np.zeros(most)
        squares[: min(most, len(values))] = values[:most] ** 2
        energy += np.cumsum(squares)
    return energy / total if total else np.ones(most)


def subspace_similarity(first_OI: np.ndarray, second_OJ: np.ndarray) -> float:
    """How much of the smaller of two column spaces lies in the other one, 0 to 1 (Hu et al. 2021,
    arXiv:2106.09685, equation 4). Both have orthonormal columns."""
    smaller = min(first_OI.shape[1], second_OJ.shape[1])
    return float((np.abs(first_OI.T @ second_OJ) ** 2).sum() / smaller) if smaller else 0.0


def count_intruders(
    base_OI: np.ndarray, delta_OI: np.ndarray, top: int = 10, threshold: float = 0.5
) -> int:
    """How many of the `top` left singular vectors of base + delta are like none of the base's:
    their largest |cosine| with one of those is below `threshold` (arXiv:2410.21228)."""
    base_u = np.linalg.svd(base_OI, full_matrices=False)[0]
    tuned_u = np.linalg.svd(base_OI + delta_OI, full_matrices=False)[0][:, :top]
    return int((np.abs(base_u.T @ tuned_u).max(0) < threshold).sum())
