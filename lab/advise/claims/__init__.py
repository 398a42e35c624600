"""Claims of five public articles, each held against what this lab computes, simulates or measures.

`assets/claims.json` holds what is claimed, with the printed figures. A file of this folder holds
functions that find the lab's own: one a claim, under `@finds`. They give figures, and the verdict
follows from these: a figure that the claim's own formula does not give contradicts itself, one that
the lab's differs from is off. Nothing is computed before it is asked for.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from lab.errors import LabError
from lab.formatting import quantity, signed_percent
from lab.paths import ASSETS
from lab.schema import quote

WITHIN = 0.05  # relative: a figure of the lab that is this near confirms the printed one


class Ruling(StrEnum):
    """The verdicts, in the order in which they are shown."""

    CONFIRMED = "confirmed"
    OFF = "off"
    CONTRADICTS = "contradicts itself"
    DEPENDS = "depends"
    OPEN = "open"
    NEEDS = "needs"


class Basis(StrEnum):
    """How the lab's value was obtained."""

    COMPUTED = "computed"
    SIMULATED = "simulated"
    MEASURED = "measured here"
    EVIDENCE = "shipped evidence"
    NOT_YET = "not measured yet"
    NOT_TESTABLE = "not testable here"


@dataclass(frozen=True)
class Claim:
    """`printed`: its figures by name: numbers, or lists of them."""

    id: str
    topic: str
    says: str
    printed: dict[str, Any]


@dataclass(frozen=True)
class Sum:
    """One printed figure beside the lab's. `low`, `high`: what is printed, equal unless a range;
    `formula`: how `value` comes about, with the numbers put in; `is_own`: whether that is the
    claim's own formula, so that a difference is a contradiction."""

    title: str = ""
    low: float = 0.0
    high: float = 0.0
    value: float = 0.0
    unit: str = ""
    formula: str = ""
    is_own: bool = False

    @property
    def off_by(self) -> float:
        """Relative, to the nearer end of what is printed; 0 within it."""
        if self.low <= self.value <= self.high:
            return 0.0
        nearest = self.low if self.value < self.low else self.high
        return self.value / nearest - 1 if nearest else math.inf

    @property
    def is_within(self) -> bool:
        """The claim's own formula has to give the figure to its last printed digit."""
        if self.is_own:
            slack = half_unit(self.low), half_unit(self.high)
            return self.low - slack[0] <= self.value <= self.high + slack[1]
        return abs(self.off_by) <= WITHIN

    @property
    def printed(self) -> str:
        if self.low == 0 < self.high:
            return f"under {spelled(self.high)}"
        return spelled(self.low) + ("" if self.low == self.high else f" to {spelled(self.high)}")

    @property
    def here(self) -> str:
        return spelled(self.value)


@dataclass(frozen=True)
class Finding:
    """What the lab says of a claim. `detail` goes behind the verdict ("by −8 %", "a GPU")."""

    value: str = "–"
    how: Basis = Basis.NOT_YET
    kind: Ruling = Ruling.OPEN
    detail: str = ""
    figures: tuple[Sum, ...] = ()
    note: str = ""
    date: str = ""
    machine: str = ""
    evidence_id: str = ""
    runs: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        return f"{self.kind} {self.detail}".strip()


Find = Callable[[Claim], Finding]
_finders: dict[str, Find] = {}


def finds(*ids: str) -> Callable[[Find], Find]:
    """Decorator of the function that finds the lab's value for these claims."""

    def add(find: Find) -> Find:
        for claim_id in ids:
            if claim_id in _finders:
                raise ValueError(f"two functions find {claim_id}")
            _finders[claim_id] = find
        return find

    return add


@cache
def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((ASSETS / "claims.json").read_text(encoding="utf-8"))
    return stored


def topics() -> dict[str, str]:
    """{key: title}."""
    return dict(_stored()["topics"])


@cache
def all_claims() -> tuple[Claim, ...]:
    return tuple(Claim(**claim) for claim in _stored()["claims"])


def get(claim_id: str) -> Claim:
    """The claim, in whatever case its id is written. Raises LabError."""
    known = {claim.id: claim for claim in all_claims()}
    if claim_id.upper() not in known:
        raise LabError(f"There is no claim '{quote(claim_id)}'.", "Ids look like C3; A to E.")
    return known[claim_id.upper()]


def finders() -> dict[str, Find]:
    """{claim id: the function that finds the lab's value}."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(_finders)


def compute(claim: Claim) -> Finding:
    """The lab's value and verdict by figures alone. Never raises a LabError: what the planner
    refuses is told as what is needed."""
    try:
        return finders()[claim.id](claim)
    except LabError as error:
        detail = "a forecast, which failed"
        return Finding("–", Basis.NOT_TESTABLE, Ruling.NEEDS, detail, note=str(error))


def judged(
    figures: list[Sum], how: Basis, value: str = "", *, note: str = "", depends: str = ""
) -> Finding:
    """The finding that figures give. `depends`: what the claim does not say and the figures depend
    on; then nothing but its own formula can contradict it."""
    contradicting = [figure for figure in figures if figure.is_own and not figure.is_within]
    others = [figure for figure in figures if not figure.is_own]
    worst = max(others or figures, key=lambda figure: abs(figure.off_by))
    shown = contradicting[0] if contradicting else worst
    text = value or f"{shown.title}: {shown.here} {shown.unit}".strip()
    if contradicting:
        count = "" if len(contradicting) == 1 else f" ({quantity(len(contradicting), 'figure')})"
        return Finding(text, how, Ruling.CONTRADICTS, count.strip(), tuple(figures), note)
    if depends:
        return Finding(text, how, Ruling.DEPENDS, f"on {depends}", tuple(figures), note)
    if all(figure.is_within for figure in figures):
        return Finding(text, how, Ruling.CONFIRMED, "", tuple(figures), note)
    return Finding(text, how, Ruling.OFF, f"by {percent(worst.off_by)}", tuple(figures), note)


def exactly(title: str, printed: float, value: float, unit: str, formula: str) -> Sum:
    """A figure that the claim's own formula gives, or does not."""
    return Sum(title, printed, printed, value, unit, formula, is_own=True)


def half_unit(value: float) -> float:
    """Half of the last digit that is not a zero: 13.1 → 0.05, 470 → 5."""
    if value == 0:
        return 0.0
    digits, _, exponent = f"{value:.15g}".partition("e")
    if exponent:
        return 0.5 * 10.0 ** (int(exponent) - len(digits.partition(".")[2]))
    whole, _, fraction = digits.lstrip("-").partition(".")
    if fraction:
        return float(0.5 * 10.0 ** -len(fraction))
    zeros = len(whole) - len(whole.rstrip("0"))
    return float(0.5 * 10.0**zeros)


def spelled(value: float) -> str:
    """Counts whole with commas, rates as they are written, the rest with three digits or more."""
    if value == int(value) and abs(value) >= 1:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(ratio: float) -> str:
    """A relative difference with its sign; as a multiple from double on."""
    if not math.isfinite(ratio):
        return "–"
    if ratio >= 1:
        return f"× {ratio + 1:,.2g}"
    return signed_percent(ratio)


def range_of(value: Any) -> tuple[float, float]:
    """(low, high) of a printed figure."""
    return (value[0], value[1]) if isinstance(value, list) else (value, value)
