"""Differences of two models on the same held-out rows, and how sure they are.

Legend: S seeds of a contestant, N rows, G clusters. A mean over rows weighs each by its `weights`:
with summed losses and counted tokens it is the evaluation loss itself. Its variance is that of a
ratio of sums by clusters (Cochran 1977, Sampling Techniques, 6.4; rows of one document are one
cluster), to which the variance between seeds is added. Degrees of freedom are Satterthwaite's
(1946, Biometrics Bulletin 2). The rows' part holds some of the seeds' noise too, so that the
interval is rather too wide than too narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """The first less the second. `half` is half of the 95 % interval, infinite where there is too
    little to tell; `lower` counts the rows on which the first is below the second, `rows` all."""

    mean: float
    half: float
    lower: int
    rows: int
    seeds: int = 1

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.mean) > self.half


def paired_difference(
    first_SN: np.ndarray,
    second_SN: np.ndarray,
    weights_N: np.ndarray | None = None,
    clusters_N: np.ndarray | None = None,
    *,
    same_seeds: bool = False,
) -> PairedDifference:
    """The difference of the weighted means of two (S, N) or (N,) arrays over the same N rows.

    `weights_N` are ones if left out; `clusters_N` names the document of each row. `same_seeds`: row
    s of both is of the same seed, so that seeds are paired too; otherwise the two may have
    different numbers of seeds. Raises ValueError for arrays that do not fit each other.
    """
    first_SN, second_SN = np.atleast_2d(first_SN), np.atleast_2d(second_SN)
    num_rows = first_SN.shape[1]
    weights_N = np.ones(num_rows) if weights_N is None else np.asarray(weights_N, float)
    clusters_N = np.arange(num_rows) if clusters_N is None else np.asarray(clusters_N)
    if second_SN.shape[1] != num_rows or len(weights_N) != num_rows or len(clusters_N) != num_rows:
        raise ValueError("both models, weights and clusters are of the same rows")
    if same_seeds and len(first_SN) != len(second_SN):
        raise ValueError("the same seeds are as many on both sides")
    difference_N = first_SN.mean(0) - second_SN.mean(0)
    total = weights_N.sum()
    mean = float(difference_N.sum() / total)
    rest_N = difference_N - mean * weights_N
    rest_G = _sums_by(clusters_N, rest_N)
    seeds = min(len(first_SN), len(second_SN))
    variances: list[tuple[float, int]] = []  # of the mean, with degrees of freedom
    if len(rest_G) > 1:
        scale = len(rest_G) / (len(rest_G) - 1)
        variances.append((float(scale * (rest_G**2).sum() / total**2), len(rest_G) - 1))
    means = [part.sum(1) / total for part in (first_SN, second_SN)]
    if seeds > 1 and same_seeds:
        variances.append((float(np.var(means[0] - means[1], ddof=1) / seeds), seeds - 1))
    elif seeds > 1:
        variances += [(float(np.var(part, ddof=1) / len(part)), len(part) - 1) for part in means]
    half = half_interval(variances) if len(rest_G) > 1 else math.inf
    return PairedDifference(mean, half, int((difference_N < 0).sum()), num_rows, seeds)


def _sums_by(clusters_N: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """(G,) sums of the values of each cluster."""
    names, place_N = np.unique(clusters_N, return_inverse=True)
    return np.bincount(place_N, weights=values_N, minlength=len(names))


def half_interval(variances: list[tuple[float, int]]) -> float:
    """Half of the 95 % interval of a mean whose variance is the sum of independent parts, each with
    its degrees of freedom; infinite without a part."""
    if not variances:
        return math.inf
    variance = sum(part for part, _ in variances)
    if variance == 0.0:
        return 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in variances)
    return t_quantile(freedom) * math.sqrt(variance)


def mean_interval(values: np.ndarray) -> tuple[float, float | None]:
    """(mean, half of its 95 % interval) of one value a seed; None for a single one."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values[0]), None
    variance = float(np.var(values, ddof=1) / len(values))
    return float(values.mean()), half_interval([(variance, len(values) - 1)])


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """t of Student's distribution that |t| stays below with probability `level`."""
    tail, low, high = 1 - level, 0.0, 1.0
    while _two_sided_tail(high, freedom) > tail:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _two_sided_tail(middle, freedom) > tail else (low, middle)
    return (low + high) / 2


def _two_sided_tail(t: float, freedom: float) -> float:
    """Probability that |t| is exceeded: the regularized incomplete beta function at
    freedom / (freedom + t²), with parameters freedom / 2 and 1 / 2."""
    return incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b) by its continued fraction (Lentz's method;
    DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return float(x > 0.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(1 - x, b, a)
    log_front = a * math.log(x) + b * math.log1p(-x)
    log_front -= math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    tiny = 1e-300
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(400):
        m = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 + term * d
        c = 1 + term / c
        d = 1 / (d if abs(d) > tiny else tiny)
        c = c if abs(c) > tiny else tiny
        fraction *= c * d
        if step and abs(c * d - 1) < 1e-14:
            break
    return math.exp(log_front) * (fraction - 1) / a
