"""Two figures against each other, and which contestants no other one beats in both.

A figure without a better direction, such as a rank, may be an axis; then nothing beats anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lab.compare.contestants import Contestant
from lab.compare.curves import HIGHER
from lab.compare.figures import BY_KEY, FIGURES, interval

PLANES = (("forgetting", "loss"), ("peak_bytes", "loss"))  # (x, y) of the first two plots


@dataclass(frozen=True)
class Point:
    id: str
    x: float
    y: float


def axes_with_values(contestants: Sequence[Contestant], price: float = 0.0) -> list[str]:
    """Figures that two contestants or more have."""
    return [
        figure.key
        for figure in FIGURES
        if sum(interval(each, figure.key, price)[0] is not None for each in contestants) > 1
    ]


def points(contestants: Sequence[Contestant], x: str, y: str, price: float = 0.0) -> list[Point]:
    """Those that have both figures."""
    pairs = [
        (each.id, interval(each, x, price)[0], interval(each, y, price)[0]) for each in contestants
    ]
    return [
        Point(name, at, value) for name, at, value in pairs if at is not None and value is not None
    ]


def pareto_front(plane: Sequence[Point], x: str, y: str) -> list[Point]:
    """The points that no other one beats: better in one figure and no worse in the other. From the
    best of `x` to the best of `y`; of equal points all stay. None where neither direction of an
    axis is better."""
    if not (BY_KEY[x].better and BY_KEY[y].better):
        return []
    sign_x, sign_y = (-1.0 if BY_KEY[key].better == HIGHER else 1.0 for key in (x, y))
    costs = [(sign_x * point.x, sign_y * point.y, point) for point in plane]
    front = [
        (cost_x, cost_y, point)
        for cost_x, cost_y, point in costs
        if not any(
            other_x <= cost_x and other_y <= cost_y and (other_x < cost_x or other_y < cost_y)
            for other_x, other_y, _ in costs
        )
    ]
    return [point for _, _, point in sorted(front, key=lambda each: each[:2])]
