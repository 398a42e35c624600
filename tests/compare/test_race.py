"""A race's specs, seeds and budget, without training."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from lab import paths
from lab.atomic_files import write_json
from lab.checked_run import CheckedRun
from lab.compare import race, race_start
from lab.compare.race import Budget
from lab.errors import LabError, SpecError
from lab.paths import RunDir
from lab.runs import actions
from tests.answers import race_specs

Make = Callable[..., dict[str, Any]]
BUDGETS = ("max_tokens", "max_seconds", "max_flops", "max_steps")


_checked: dict[str, CheckedRun] = {}


@pytest.fixture(autouse=True)
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Specs are checked in this process, the same one once; how the process answers is told
    elsewhere."""
    from tests.answers import checked

    def once(spec: dict[str, Any]) -> CheckedRun:
        key = json.dumps(spec, sort_keys=True)
        if key not in _checked:
            _checked[key] = checked(spec)
        return copy.deepcopy(_checked[key])

    monkeypatch.setattr(race_start.same_commits.planner, "check", once)


@pytest.mark.parametrize(
    ("text", "key", "amount"),
    [("tokens=500", "max_tokens", 500), ("seconds=1.5", "max_seconds", 1.5),
     ("flops=1e15", "max_flops", 1e15), ("steps=20", "max_steps", 20),
     ("tokens=10,000", "max_tokens", 10_000), ("tokens=10_000", "max_tokens", 10_000)],
)  # fmt: skip
def test_the_budget_of_a_race_is_its_only_one(
    make_spec: Make, text: str, key: str, amount: float
) -> None:
    value = make_spec("lora", train={"max_steps": 7, "max_tokens": 9, "max_seconds": 3.0})
    specs, _ = race_specs(value, ["lora", "full"], Budget.parse(text))
    for name, spec in specs.items():
        budgets = {one: spec["train"].get(one) for one in BUDGETS}
        assert budgets == dict.fromkeys(BUDGETS) | {key: amount}, name
    kept, _ = race_specs(value, ["lora", "full"], None)
    assert kept["full"]["train"]["max_tokens"] == 9, "Without one, what the spec says holds."


@pytest.mark.parametrize(
    "text", ["tokens", "tokens=", "hours=3", "tokens=1.5", "steps=0.5", "seconds=0", "seconds=-1",
             "flops=inf", "seconds=nan", "max_tokens=5"],
)  # fmt: skip
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(LabError, match="is not a budget"):
        Budget.parse(text)


def test_a_methods_own_rate_and_options_are_its_own(make_spec: Make) -> None:
    value = make_spec("lora", train={"learning_rate": 1e-3})
    value["methods"] = {"lora": {"learning_rate": 5e-3, "rank": 2}}
    for names in (["lora", "full"], ["full", "lora"]):
        specs, _ = race_specs(value, names, None)
        assert list(specs) == names
        assert specs["lora"]["train"]["learning_rate"] == 5e-3
        assert specs["full"]["train"]["learning_rate"] == 1e-3
        assert specs["lora"]["method"] == {"name": "lora", "rank": 2}
        assert specs["full"]["method"] == {"name": "full"}


def test_seeds_count_up_and_everything_else_stays(make_spec: Make) -> None:
    specs, _ = race_specs(make_spec("lora", train={"seed": 40}), ["lora", "full"], None)
    plans = race_start.check(specs, seeds=3)
    assert [plan.spec.train.seed for plan in plans] == [40, 40, 41, 41, 42, 42]
    assert [plan.requested["train"]["seed"] for plan in plans] == [40, 40, 41, 41, 42, 42]
    for plan in plans[2:]:
        same = plans[0] if plan.spec.method["name"] == "lora" else plans[1]
        for section in ("data", "method", "model"):
            assert getattr(plan.spec, section) == getattr(same.spec, section)
    highest = race_specs(make_spec("lora", train={"seed": 2**32 - 1}), ["lora", "full"], None)[0]
    assert [plan.spec.train.seed for plan in race_start.check(highest, 2)][2:] == [0, 0]
    with pytest.raises(LabError, match="202 runs"):
        race_start.check(specs, 101)


def test_all_runs_together_must_fit_the_disk(
    make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, _ = race_specs(make_spec("lora"), ["lora", "full"], None)
    need = sum(
        plan.forecast.disk.total for plan in race_start.check(specs, 1) if plan.forecast.disk
    )
    usage = shutil.disk_usage("/")
    for free, seeds, fits in (
        (2 * need, 2, True),
        (2 * need - 1, 2, False),
        (need // 9, 2, False),
        (need, 1, True),
    ):
        has = usage._replace(free=free)
        monkeypatch.setattr(race_start.shutil, "disk_usage", lambda path, has=has: has)
        if fits:
            assert race_start.check(specs, seeds)
        else:
            figures = rf"need {2 * need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
            with pytest.raises(
                SpecError, match=f"not enough disk: all runs together may {figures}"
            ):
                race_start.check(specs, seeds)


def test_a_race_that_cannot_be_written_leaves_no_run(
    make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = race_start.check(race_specs(make_spec("lora"), ["lora", "full"], None)[0], 1)
    real, calls = actions.create_run_dir, []

    def second_fails(plan: CheckedRun) -> RunDir:
        calls.append(plan)
        if len(calls) == 2:
            raise LabError("The disk is full.")
        return real(plan)

    monkeypatch.setattr(actions, "create_run_dir", second_fails)
    with pytest.raises(LabError, match="disk is full"):
        race_start.start(plans)
    assert paths.all_runs() == []


def test_the_runs_of_a_race_come_in_their_order_and_on_its_axis(
    make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "submit", lambda run: None)
    specs, _ = race_specs(make_spec("lora"), ["lora", "full"], Budget("seconds", 5.0))
    name, runs = race_start.start(race_start.check(specs, 2))
    for age, run in enumerate(reversed(runs)):
        os.utime(run.spec, (1e9 - age, 1e9 - age))
    assert race.runs_of(name) == runs, "In the order in which they were made."
    assert race.axis_of(runs[0]) == "seconds"
    for train, axis in (({"max_steps": 3}, "step"), ({"max_tokens": 3}, "tokens"),
                        ({"max_flops": 3.0}, "flops"), ({}, "step")):  # fmt: skip
        write_json(runs[0].spec, {"train": train})
        assert race.axis_of(runs[0]) == axis
    with pytest.raises(LabError, match="no run of race-"):
        race.runs_of("race-20200101-000000-abcd")
    with pytest.raises(LabError, match="is not a race"):
        race.runs_of("race-../../x")


@pytest.mark.parametrize(
    ("packing", "note"), [({}, True), ({"packing": "on"}, True), ({"packing": "off"}, False),
                          ({"packing": False}, False)],
)  # fmt: skip
def test_packing_is_off_for_all_where_a_method_cannot_pack_and_that_is_said_once(
    packing: dict[str, Any], note: bool
) -> None:
    value = {"name": "n", "data": packing}
    specs, notes = race_specs(value, ["lora", "prefix"], None)
    assert {spec["data"]["packing"] for spec in specs.values()} <= {"off", False}
    words = "Packing is off for all: Prefix tuning cannot train on packed rows."
    assert notes == ([words] if note else []), "what was off already needs no word"
