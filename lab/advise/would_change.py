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

from lab import gpu_table, schema
from lab.advise.case import (
    COMPLEXITIES,
    DISTANCES,
    GOALS,
    PRICES_IN_WORDS,
    AdviceCase,
)
from lab.advise.rules import Approach

MAX_DOUBLINGS = 12
NEAREST = 0.2  # doublings: a size that is nearer is the same
CHOICES = {
    "goal": GOALS,
    "domain_shift": DISTANCES,
    "keeps_general": (False, True),
    "error_price": PRICES_IN_WORDS,
    "complexity": COMPLEXITIES,
}
# Counts with the noun for them, and the most that a case takes
COUNTS = {"examples": "examples", "tokens_per_example": "tokens an example",
          "variants": "variants", "tasks": "tasks"}  # fmt: skip
LIMITS = {
    field.name: field.metadata["max"]
    for field in schema.describe(AdviceCase)
    if field.metadata.get("max")
}
SIZES = (0.5e9, 1e9, 3e9, 7e9, 13e9, 34e9, 70e9)  # parameters, as articles and models have them
ERRORS_COST = {"low": "little", "medium": "something", "high": "much"}
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
    """At most one change for each input but the model's size, the nearest first. `now`: the answer
    for `case`; `answer`: that for a case with another value of one input. Where nothing fits, what
    does is a change."""
    return _changes(case, now, answer, _tries(case))


def of_size(
    case: AdviceCase, now: Advised, answer: Callable[[AdviceCase], Advised | None]
) -> list[Change]:
    """The nearest size of a model that turns the answer, if one does. `answer` asks the planner for
    each size, and gives None where it cannot tell."""
    size = case.billions * 1e9
    sizes = sorted((abs(math.log2(each / size)), each) for each in SIZES)
    tries = ((distance, each) for distance, each in sizes if distance > NEAREST)
    return _changes(case, now, lambda other: answer(other) or now, {"parameters": tries})


def _changes(
    case: AdviceCase,
    now: Advised,
    answer: Callable[[AdviceCase], Advised],
    inputs: dict[str, Iterator[tuple[float, Any]]],
) -> list[Change]:

    def is_turned(other: AdviceCase) -> bool:
        turned = answer(other)
        return turned.approach is not now.approach or (turned.fits and not now.fits)

    turning = []
    for field, tries in inputs.items():
        for distance, value in tries:
            other = _with(case, field, value)
            if not is_turned(other):
                continue
            if field in COUNTS:
                value = _narrowed(case, field, value, is_turned)
                distance = abs(math.log2(value / getattr(case, field)))
            turned = answer(_with(case, field, value))
            outcome = turned.approach.in_words + (" fits" if turned.fits and not now.fits else "")
            text = f"{_in_words(case, field, value)}: {outcome}"
            turning.append(Change(field, text, turned.approach, distance))
            break
    return sorted(turning, key=lambda change: change.distance)


def _tries(case: AdviceCase) -> dict[str, Iterator[tuple[float, Any]]]:
    """For each input the (distance, value) to be tried, the nearest first."""
    tries: dict[str, Iterator[tuple[float, Any]]] = {"gpu_gb": _cards(case)}
    tries |= {name: _doublings(getattr(case, name), int(LIMITS[name])) for name in COUNTS}
    tries["budget_usd"] = _budgets(case)
    tries |= {
        name: iter([(1.0, value) for value in values if value != getattr(case, name)])
        for name, values in CHOICES.items()
    }
    if isinstance(case.error_price, (int, float)):
        tries["error_price"] = _amounts(case.error_price)
    return tries


def _doublings(value: int, most: int) -> Iterator[tuple[float, int]]:
    for step in range(1, MAX_DOUBLINGS + 1):
        if value * 2**step <= most:
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
    yield from _amounts(case.budget_usd)
    yield MAX_DOUBLINGS + 1.0, None


def _amounts(value: float) -> Iterator[tuple[float, float]]:
    """Of money, up and down by doublings."""
    for step in range(1, MAX_DOUBLINGS + 1):
        yield float(step), value * 2**step
        yield float(step), value / 2**step


def _with(case: AdviceCase, field: str, value: Any) -> AdviceCase:
    if field == "gpu_gb":
        return dataclasses.replace(case, gpu="", gpu_gb=value)
    if field == "parameters":
        return dataclasses.replace(case, model="", parameters=value)
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
        noun = COUNTS[field]
        if value == 1:
            noun = noun.replace("s an", " an").removesuffix("s")
        return f"from {value:,} {noun} on" if more else f"up to {value:,} {noun}"
    if field == "budget_usd":
        return "without a budget" if value is None else f"with a budget of {value:,.2f} USD"
    if field == "parameters":
        direction = "from" if value > case.billions * 1e9 else "down to"
        on = " on" if value > case.billions * 1e9 else ""
        return f"{direction} a model of {value / 1e9:g}B{on}"
    if field == "error_price" and not isinstance(value, str):
        return f"if two points of accuracy are worth {value:,.2f} USD"
    words = {
        "goal": f"for {value} as the goal",
        "domain_shift": f"in a {value} domain",
        "keeps_general": "if general ability must stay" if value else "if it may forget",
        "error_price": f"if errors cost {ERRORS_COST.get(value, '')}",
        "complexity": f"for a {value} task",
    }
    return words[field]
