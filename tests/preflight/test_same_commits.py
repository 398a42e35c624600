"""Runs that are compared read the commits that the first of them has read."""

from __future__ import annotations

from typing import Any

import pytest

from lab.checked_run import CheckedRun
from lab.forecasts import DatasetStats, Forecast
from lab.preflight import same_commits
from lab.spec import RunSpec

COMMIT = "0123456789" * 4
FIRST = {"model": "org/base", "data": {"dataset": "org/rows", "general_dataset": "org/text"}}
PINNED = f"org/base#{COMMIT}"


@pytest.mark.parametrize(
    ("own", "model", "dataset"),
    [
        ({}, PINNED, f"org/rows#{COMMIT}"),
        ({"model": "org/other"}, "org/other", f"org/rows#{COMMIT}"),
        # it takes the commit of the run that it goes on from
        ({"init_from_run": "run:20260101-000000-lora-abcd"}, "org/base", f"org/rows#{COMMIT}"),
        ({"data": {"dataset": "org/others"}}, PINNED, "org/others"),
    ],
)
def test_what_both_name_is_read_at_one_commit(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, Any], model: str, dataset: str
) -> None:
    data = {"dataset": f"org/rows#{COMMIT}", "general_dataset": f"org/text#{COMMIT}"}
    spec = RunSpec.from_json({"model": PINNED, "data": data})
    first = CheckedRun(spec, FIRST, DatasetStats(), Forecast())
    specs: list[dict[str, Any]] = []

    def check(value: dict[str, Any]) -> CheckedRun:
        specs.append(value)
        return first

    monkeypatch.setattr(same_commits.planner, "check", check)
    requested = FIRST | own
    answer = same_commits.check(requested, first)
    assert (specs[0]["model"], specs[0]["data"]["dataset"]) == (model, dataset)
    assert answer.requested == requested, "it names the branch still"
