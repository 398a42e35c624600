"""Curves of contestants over a common axis, and who leads where.

Between two evaluations a curve is a straight line; beyond a run's last one there is nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lab.compare.contestants import Contestant
from lab.compare.paired import t_quantile
from lab.compare.run_figures import RunFigures, energy_curve
from lab.runs.metric_series import downsample, series_of

MAX_POINTS = 600  # of a curve that is drawn
AXES = ("step", "tokens", "seconds", "flops", "energy", "cost")
LOWER, HIGHER = "lower", "higher"
MEASURES = {  # what is better of each quantity that can be drawn; "" where neither is
    "eval/loss": LOWER,
    "train/loss": LOWER,
    "probe/rise": LOWER,
    "probe/kl": LOWER,
    "probe/ended": "",
    "probe/answer_tokens": "",
    "perf/tokens_per_s": HIGHER,
    "memory/peak_bytes": LOWER,
    "rank/effective": "",
    "rank/stable": "",
    "rank/condition": "",
    "train/grad_norm": "",
    "train/learning_rate": "",
}
KIND_OF = {"eval": "eval", "rank": "eval", "probe": "probe"}  # by the key's first part; else train


@dataclass(frozen=True, eq=False)
class Curve:
    """(P,) places and values. half: (P,) of the 95 % interval, None where nothing says how sure
    the values are: between the seeds, or of the difference to the base by example."""

    x: np.ndarray
    y: np.ndarray
    half: np.ndarray | None = None


def axes_of(contestants: Sequence[Contestant], price: float = 0.0) -> list[str]:
    """The axes that every contestant has; cost where there is a price."""
    runs = [run for contestant in contestants for run in contestant.runs]
    has_energy = bool(runs) and all(run.energy_wh is not None for run in runs)
    return [
        axis for axis in AXES if (axis != "energy" or has_energy) and (axis != "cost" or price > 0)
    ]


def measures_of(contestants: Sequence[Contestant]) -> list[str]:
    """What at least one contestant has measured."""
    return [
        key
        for key in MEASURES
        if any(
            series_of(run.run).kinds[_kind(key)].has(key)
            for contestant in contestants
            for run in contestant.runs
        )
    ]


def _kind(key: str) -> str:
    return KIND_OF.get(key.partition("/")[0], "train")


def curve(contestant: Contestant, key: str, by: str, price: float = 0.0) -> Curve | None:
    """The mean over its seeds, thinned; None where a run has no value. `price`: USD an hour."""
    lines = [run_curve(run, key, by, price) for run in contestant.runs]
    if any(not len(x) for x, _ in lines):
        return None
    if len(lines) == 1:
        (x, y), half = lines[0], None
        if key == "eval/loss":
            half = _half_by_row(contestant.first, len(x))
    else:
        x, values = _aligned(lines)
        y = values.mean(0)
        spread = values.std(0, ddof=1) / math.sqrt(len(values))
        half = t_quantile(len(values) - 1) * spread
    if len(x) > MAX_POINTS:
        thin_x, thin_y = downsample(x, y, MAX_POINTS)
        half = None if half is None else np.interp(thin_x, x, half)
        x, y = thin_x, thin_y
    return Curve(x, y, half)


def run_curve(
    run: RunFigures, key: str, by: str, price: float = 0.0, *, with_base: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(places, values) of one run, in the order of its steps; `with_base`, an evaluation loss
    begins with the base's, at 0."""
    series = series_of(run.run)
    with series.lock:
        columns = series.kinds[_kind(key)]
        y = columns.get(key)
        if by in ("energy", "cost"):
            seconds = columns.get("seconds")
            if by == "cost":
                x = seconds / 3600 * price
            else:
                at, used = energy_curve(series.device)
                x = np.interp(seconds, at, used) if len(at) else np.full(len(seconds), np.nan)
        else:
            x = columns.get(by)
        base = series.evaluation.base
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if with_base and key == "eval/loss" and base is not None and math.isfinite(base["eval/loss"]):
        x, y = np.concatenate([[0.0], x]), np.concatenate([[base["eval/loss"]], y])
    return x, y


def _aligned(lines: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(P,) places within the reach of all lines, and (S, P) values there."""
    start, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    longest = max((x for x, _ in lines), key=len)
    x = np.unique(np.concatenate([[start], longest[(longest >= start) & (longest <= end)], [end]]))
    return x, np.array([np.interp(x, at, values) for at, values in lines])


def _half_by_row(run: RunFigures, points: int) -> np.ndarray | None:
    """(P,) half intervals of the difference to the base by example; the base itself has 0."""
    losses = run.losses
    if losses is None or losses.base is None or len(losses.sums) + 1 != points:
        return None
    total = losses.tokens.sum()
    clusters, place_N = np.unique(losses.sources, return_inverse=True)
    num_clusters = len(clusters)
    if num_clusters < 2:
        return None
    differences_EN = losses.sums - losses.base
    rest_EN = differences_EN - differences_EN.sum(1, keepdims=True) / total * losses.tokens
    rest_EG = rest_EN @ (place_N[:, None] == np.arange(num_clusters))
    scale = num_clusters / (num_clusters - 1)
    variances_E = scale * (rest_EG**2).sum(1) / total**2
    quantile = t_quantile(num_clusters - 1)
    return np.concatenate([[0.0], quantile * np.sqrt(variances_E)])


@dataclass(frozen=True)
class Standing:
    """A contestant at one place of the axis: its value there and its distance to the leader; or,
    where it has ended before, `ended_at` and its last value."""

    id: str
    value: float
    behind: float = 0.0
    ended_at: float | None = None


def standings(curves: Mapping[str, Curve], at: float, better: str = LOWER) -> list[Standing]:
    """Who leads at `at`, best first; those that had ended by then come last."""
    sign = -1.0 if better == HIGHER else 1.0
    running, ended = [], []
    for name, line in curves.items():
        if at > line.x[-1]:
            ended.append(Standing(name, float(line.y[-1]), ended_at=float(line.x[-1])))
        elif at >= line.x[0]:
            running.append((name, float(np.interp(at, line.x, line.y))))
    running.sort(key=lambda pair: sign * pair[1])
    ended.sort(key=lambda standing: sign * standing.value)
    lead = running[0][1] if running else 0.0
    return [Standing(name, value, value - lead) for name, value in running] + ended


@dataclass(frozen=True)
class LeadChange:
    """From `at` on, `leader` leads."""

    at: float
    leader: str


def lead_changes(curves: Mapping[str, Curve], better: str = LOWER) -> list[LeadChange]:
    """Every place at which another contestant takes the lead by crossing the leader's curve. One
    that leads because the leader has ended took nothing."""
    sign = -1.0 if better == HIGHER else 1.0
    names = [name for name in curves if len(curves[name].x) > 1]
    if len(names) < 2:
        return []
    grid = np.unique(np.concatenate([curves[name].x for name in names]))
    values = np.array(
        [np.interp(grid, curves[n].x, sign * curves[n].y, np.nan, np.nan) for n in names]
    )
    changes: list[LeadChange] = []
    leader: int | None = None
    for interval, (left, right) in enumerate(itertools.pairwise(grid)):
        here = [
            index
            for index in range(len(names))
            if np.isfinite(values[index, interval : interval + 2]).all()
        ]
        if not here:
            continue
        position = float(left)
        if leader not in here:  # it has ended, or this is the beginning
            if leader is not None:
                leader = min(here, key=lambda index: values[index, interval])
            else:
                # at the start all are the base: who falls fastest leads from there
                leader = min(
                    here, key=lambda index: (values[index, interval], values[index, interval + 1])
                )
        while True:
            crossing = _next_crossing(
                values, here, leader, interval, float(left), float(right), position
            )
            if crossing is None:
                break
            position, leader = crossing
            changes.append(LeadChange(position, names[leader]))
    return changes


def _next_crossing(
    values: np.ndarray,
    here: list[int],
    leader: int,
    interval: int,
    left: float,
    right: float,
    after: float,
) -> tuple[float, int] | None:
    """(where, who) first crosses the leader between two places of the grid, behind `after`."""
    first: tuple[float, float, int] | None = None
    for other in here:
        if other == leader:
            continue
        before = values[other, interval] - values[leader, interval]
        behind = values[other, interval + 1] - values[leader, interval + 1]
        if behind >= 0:
            continue  # at the end of the interval the leader still leads, or both are equal
        share = before / (before - behind) if before > 0 else 0.0
        at = max(left + share * (right - left), after)
        slope = behind - before
        if first is None or (at, slope) < first[:2]:
            first = (at, slope, other)
    return None if first is None else (first[0], first[2])
