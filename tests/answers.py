"""What the preflight process answers, as the JSON that it sends."""

from __future__ import annotations

from typing import Any

from lab.checked_run import CheckedRun
from lab.compare import race
from lab.compare.race import Budget
from lab.errors import SpecError
from lab.preflight import validate, worker

worker.load_libraries()  # before a test replaces what they look at


def _answer(kind: str, **request: Any) -> dict[str, Any]:
    try:
        return worker.answer_to({"ask": kind, **request})
    except SpecError as error:
        return {"problems": [problem.to_json() for problem in error.problems]}


def check(spec: Any) -> dict[str, Any]:
    return _answer("check", spec=spec)


def fixes(spec: Any) -> dict[str, Any]:
    return _answer("fixes", spec=spec)


def estimate(spec: Any, device: Any = None, how: Any = None) -> dict[str, Any]:
    return _answer("estimate", spec=spec, device=device, how=how)


def plan(spec: Any, device: Any = None) -> dict[str, Any]:
    return _answer("plan", spec=spec, device=device)


def limits(spec: Any, device: Any) -> dict[str, Any]:
    return _answer("limits", spec=spec, device=device)


def checked(spec: Any) -> CheckedRun:
    """The run that would start, checked in this process."""
    return validate.check(spec).checked()


def race_specs(
    value: dict[str, Any], names: list[str], budget: Budget | None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The specs of a race of the contestants of `value` and `names`, and notes on them."""
    return race.contestant_specs(value, race.contestants(value, names), budget)
