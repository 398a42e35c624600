"""The nearest input that turns a recommendation, found by trying other values, one input at a time.

A number moves by doublings, a choice counts as one doubling. What is found for a number is then
narrowed down to the value at which the answer turns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lab import gpu_table
from lab.advise.case import (
    COMPLEXITIES,
    DISTANCES,
    GOALS,
    PRICES_IN_WORDS,
    AdviceCase,
)
from lab.advise.rules import Approach

MAX_DOUBLINGS = 12
CHOICES = {
    "goal": GOALS,
    "domain_shift": DISTANCES,
    "keeps_general": (False, True),
    "error_price": PRICES_IN_WORDS,
    "complexity": COMPLEXITIES,
}
COUNTS = ("examples", "variants", "tasks")
BUDGETS_USD = (1000.0, 999.0, 100.0, 10.0, 1.0, 0.1, 0.01)  # tried where there is no limit


@dataclass(frozen=True)
class Advised:
    """What is recommended, and whether it fits."""

    approach: Approach
    fits: bool


@dataclass(frozen=True)
class Change:
    """The nearest value of one input that turns the answer to `approach`; `distance`: doublings of
    a number, 1 for a choice."""

    field: str
    text: str
    approach: Approach
    distance: float


def changes(
    case: AdviceCase, now: Advised, answer: Callable[[AdviceCase], Advised]
) -> list[Change]:
    """At most one change for each input, the nearest first. `now`: the answer for `case`; `answer`:
    that for a case with another value of one input. Where nothing fits, what does is a change."""

    def is_turned(other: AdviceCase) -> bool:
        turned = answer(other)
        return turned.approach is not now.approach or (turned.fits and not now.fits)

    turning = []
    for field, tries in _tries(case).items():
        for distance, value in tries:
            other = _with(case, field, value)
            if not is_turned(other):
                continue
            if field in COUNTS:
                value = _narrowed(case, field, value, is_turned)
                distance = abs(math.log2(value / getattr(case, field)))
            turned = answer(_with(case, field, value))
            turned_to = turned.approach.in_words + (" fits" if turned.fits and not now.fits else "")
            text = f"{_in_words(case, field, value)}: {turned_to}"
            turning.append(Change(field, text, turned.approach, distance))
            break
    return sorted(turning, key=lambda change: change.distance)


def _tries(case: AdviceCase) -> dict[str, Iterator[tuple[float, Any]]]:
    """For each input the (distance, value) to be tried, the nearest first."""
    tries: dict[str, Iterator[tuple[float, Any]]] = {"gpu_gb": _cards(case)}
    tries |= {name: _doublings(getattr(case, name)) for name in COUNTS}
    tries["budget_usd"] = _budgets(case)
    tries |= {
        name: iter([(1.0, value) for value in values if value != getattr(case, name)])
        for name, values in CHOICES.items()
    }
    return tries


def _doublings(value: int) -> Iterator[tuple[float, int]]:
    for step in range(1, MAX_DOUBLINGS + 1):
        yield float(step), value * 2**step
        if value // 2**step >= 1:
            yield float(step), value // 2**step


def _cards(case: AdviceCase) -> Iterator[tuple[float, float]]:
    """Sizes that cards come in. This machine's own memory is no card without a GPU."""
    size = case.memory_gb
    labels = sorted({gpu.label_gb for gpu in gpu_table.GPUS} - {size})
    for label in sorted(labels, key=lambda label: abs(math.log2(label / size))):
        yield abs(math.log2(label / size)), label


def _budgets(case: AdviceCase) -> Iterator[tuple[float, float | None]]:
    if case.budget_usd is None:
        for step, budget in enumerate(BUDGETS_USD, 1):
            yield float(step), budget
        return
    for step in range(1, MAX_DOUBLINGS + 1):
        yield float(step), case.budget_usd * 2**step
        yield float(step), case.budget_usd / 2**step
    yield MAX_DOUBLINGS + 1.0, None


def _with(case: AdviceCase, field: str, value: Any) -> AdviceCase:
    if field == "gpu_gb":
        return dataclasses.replace(case, gpu="", gpu_gb=value)
    return dataclasses.replace(case, **{field: value})


def _narrowed(
    case: AdviceCase, field: str, far: int, is_turned: Callable[[AdviceCase], bool]
) -> int:
    """The value nearest to the case's own that is still turned, by halving the distance."""
    near = int(getattr(case, field))
    while abs(far - near) > 1:
        middle = (near + far) // 2
        if is_turned(_with(case, field, middle)):
            far = middle
        else:
            near = middle
    return far


def _in_words(case: AdviceCase, field: str, value: Any) -> str:
    if field == "gpu_gb":
        direction = "from" if value > case.memory_gb else "down to"
        return f"{direction} {value:g} GB" + (" on" if value > case.memory_gb else "")
    if field in COUNTS:
        more = value > getattr(case, field)
        noun = field if value != 1 else field.removesuffix("s")
        return f"from {value:,} {noun} on" if more else f"up to {value:,} {noun}"
    if field == "budget_usd":
        return "without a budget" if value is None else f"with a budget of {value:,.2f} USD"
    words = {
        "goal": f"for {value} as the goal",
        "domain_shift": f"in a {value} domain",
        "keeps_general": "if general ability must stay" if value else "if it may forget",
        "error_price": f"if errors cost {'little' if value == 'low' else 'much'}",
        "complexity": f"for a {value} task",
    }
    return words[field]
