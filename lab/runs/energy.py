"""What a card has used: its power, which the worker reads once a second, over time."""

from __future__ import annotations

import math

import numpy as np


def energy_used(
    moments_N: np.ndarray, power_N: np.ndarray, max_gap_s: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """(moments (n,), Wh used by then (n,)) of N readings in s and W, by trapezoids. Readings that
    are no numbers are left out, as is what lies beyond `max_gap_s` between two; both are
    empty where there are fewer than two."""
    if len(moments_N) != len(power_N):
        return np.zeros(0), np.zeros(0)
    is_known = np.isfinite(moments_N) & np.isfinite(power_N)
    moments, power = moments_N[is_known], power_N[is_known]
    if len(moments) < 2:
        return np.zeros(0), np.zeros(0)
    gaps = np.clip(np.diff(moments), 0.0, max_gap_s)
    used = np.cumsum(gaps * (power[1:] + power[:-1]) / 2) / 3600
    return moments, np.concatenate([[0.0], used])
