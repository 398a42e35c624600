"""A race gives every method the same data and budget, or does not start at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import cli, methods, paths
from lab.checked_run import CheckedRun
from lab.cli import race as verb
from lab.compare import race_start
from lab.compare.race import Budget
from lab.compare.race_start import PlannedRun, RaceForecast, RaceTerms
from lab.compare.ready_races import ReadyRace
from lab.errors import LabError, SpecError
from lab.paths import RunDir
from lab.runs import index
from lab.spec import RunSpec
from tests.answers import race_specs


def test_two_methods_race_to_one_table(
    lab_json: Callable[..., Any],
    make_spec: Callable[..., dict[str, Any]],
    queue_here: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = make_spec("full", train={"max_steps": 50, "sample_steps": 0, "save_steps": 0})
    spec |= {"methods": {"lora": {"rank": 4, "learning_rate": 2e-3}}}
    file = tmp_path / "race.json"
    file.write_text(json.dumps(spec))
    answer = lab_json(
        "race", str(file), "--methods", "lora,bottleneck", "--budget", "tokens=300", "--wait"
    )
    first, second = answer["runs"]
    assert [first["method"], second["method"]] == ["lora", "bottleneck"]
    assert answer["unequal"] == [] and answer["by"] == "tokens"
    assert first["tokens"] == second["tokens"] == answer["at"] >= 300
    assert first["steps"] < 12, "the budget replaces the spec's steps"
    assert first["state"] == second["state"] == "done"
    stored = json.loads(paths.run_dir(first["id"]).spec.read_text())
    assert (stored["method"]["rank"], stored["train"]["learning_rate"]) == (4, 2e-3)
    for one in (first, second):
        assert index.entry(paths.run_dir(one["id"])).tags == (answer["race"],)
        assert one["at"]["eval_loss"] is not None
    again = lab_json("compare", answer["race"])
    assert again["by"] == "tokens"
    assert [run["id"] for run in again["runs"]] == [first["id"], second["id"]]
    assert cli.main(["compare", answer["race"]]) == 0
    assert "Race: losses after" in capsys.readouterr().out


def test_nothing_starts_while_one_method_has_a_problem(
    make_spec: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = make_spec("full") | {"methods": {"lora": {"rank": 0}, "full": {"train_layers": "7"}}}
    spec["train"]["learning_rate"] = 5
    file = tmp_path / "race.json"
    file.write_text(json.dumps(spec))
    assert cli.main(["race", str(file), "--methods", "lora,full,bottleneck"]) == 2
    message = capsys.readouterr().err
    for words in (
        "lora: method.rank",
        "full: method.train_layers",
        "bottleneck: train.learning_rate",
        "'7' names no layers",
    ):
        assert words in message, message
    assert paths.all_runs() == []


def test_every_method_gets_the_same_rows(make_spec: Callable[..., dict[str, Any]]) -> None:
    spec = make_spec("lora", data={"packing": "on"})
    able = [method.name for method in methods.all_methods() if method.can_pack][:2]
    specs, notes = race_specs(spec, able, Budget("steps", 3))
    assert {row["data"]["packing"] for row in specs.values()} == {"on"} and notes == []
    specs, notes = race_specs(spec, [*able, "lora_prompt"], Budget("tokens", 500))
    assert {row["data"]["packing"] for row in specs.values()} == {"off"}
    assert "LoRA + soft prompt" in notes[0]
    assert {row["train"]["max_tokens"] for row in specs.values()} == {500}
    assert {row["train"]["max_steps"] for row in specs.values()} == {None}
    plans = race_start.check({name: specs[name] for name in able}, seeds=2)
    assert [(plan.spec.method["name"], plan.spec.train.seed) for plan in plans] == [
        (able[0], 0),
        (able[1], 0),
        (able[0], 1),
        (able[1], 1),
    ]


@pytest.mark.parametrize(
    ("names", "changes", "words"),
    [
        (["lora"], {}, "two methods or more"),
        (["lora", "lora"], {}, "named twice"),
        (["lora", "nonsense"], {}, "Unknown method 'nonsense'"),
        (["lora", "full"], {"methods": {"lorra": {}}}, "methods.lorra"),
        (["lora", "full"], {"methods": 3}, "must be an object"),
        (["lora", "full"], {"train": 3}, "must be an object"),
    ],
)
def test_races_that_cannot_be(names: list[str], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as error:
        race_specs({"model": "x"} | changes, names, None)
    assert words in str(error.value)


@pytest.mark.parametrize("text", ["", "tokens", "tokens=0", "tokens=-1", "tokens=nan", "x=3"])
def test_budgets_that_cannot_be(text: str) -> None:
    with pytest.raises(LabError, match="is not a budget"):
        Budget.parse(text)
    assert Budget.parse("tokens=10_000") == Budget("tokens", 10_000)
    with pytest.raises(LabError, match="wholes"):
        Budget.parse("steps=1.5")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, lab_home: Path) -> dict[str, Any]:
    """What a race is planned and started with; of its three runs one is a probe, one needless."""
    seen: dict[str, Any] = {}
    runs = [RunDir(lab_home / "runs" / name) for name in ("probe", "needless", "first")]
    plans = [
        PlannedRun(run.id, 0, role, CheckedRun(RunSpec(name=run.id), {}))
        for run, role in zip(runs, (verb.PROBE, "tuned", "default"), strict=True)
    ]

    def specs(value: Any, racing: Any, budget: Budget | None) -> Any:
        seen["budget"] = budget
        return {}, ["Packing is off."]

    def check(specs: Any, seeds: int, rungs: int) -> list[PlannedRun]:
        seen.update(seeds=seeds, rungs=rungs)
        return plans

    def begin(plans: Any, terms: RaceTerms) -> tuple[str, list[RunDir]]:
        seen["terms"] = terms
        return "race-x", runs

    def compared(race_id: str, runs: list[RunDir], notes: list[str], failed: int) -> Any:
        seen.update(compared=[run.id for run in runs], failed=failed)
        return verb.Output({}, lambda: None)

    ready = ReadyRace(name="mine", budget="steps=7", seeds=4, ladder=3, score_most=9)
    monkeypatch.setattr(verb.ready_races, "get", lambda name: ready)
    monkeypatch.setattr(verb.race, "contestants", lambda value, names: names)
    monkeypatch.setattr(verb.race, "contestant_specs", specs)
    monkeypatch.setattr(verb.race_start, "check_number", lambda *numbers: None)
    monkeypatch.setattr(verb.race_start, "check", check)
    monkeypatch.setattr(verb.race_start, "unfairness", lambda *_: "One takes twice as long.")
    monkeypatch.setattr(
        verb.race_start, "forecast", lambda plans: RaceForecast(3, 60.0, 2 * 10**9, 10**9)
    )
    monkeypatch.setattr(verb.race_start, "start", begin)
    monkeypatch.setattr(verb.ladder, "is_needless", lambda run: run.id == "needless")
    monkeypatch.setattr(verb.follow, "follow", lambda *_, **__: verb.status(runs[0]))
    monkeypatch.setattr(verb, "_score", lambda race_id: None)
    monkeypatch.setattr(verb, "_result", compared)
    return seen


def test_a_ready_race_has_terms_of_its_own_unless_others_are_given(
    planned: dict[str, Any],
) -> None:
    assert cli.main(["race", "--ready", "mine"]) == 0
    assert (planned["budget"], planned["seeds"], planned["rungs"]) == (Budget("steps", 7), 4, 3)
    assert (planned["terms"].ready, planned["terms"].score_most) == ("mine", 9)
    options = ["--budget", "tokens=500", "--seeds", "2", "--ladder", "0"]
    assert cli.main(["race", "--ready", "mine", *options]) == 0
    assert (planned["budget"], planned["seeds"], planned["rungs"]) == (Budget("tokens", 500), 2, 0)
    assert cli.main(["race"]) == 2
    assert cli.main(["race", "spec.json", "--ready", "mine"]) == 2


def test_a_plan_says_what_a_race_would_take_and_starts_nothing(
    planned: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["race", "--ready", "mine", "--plan"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 runs: about 1 min 00 s, 2.00 GB of memory at most, 1.00 GB of disk" in shown
    assert "Packing is off. One takes twice as long." in shown, "What is not equal is said."
    assert "terms" not in planned


def test_probes_and_needless_runs_are_not_compared(planned: dict[str, Any]) -> None:
    assert cli.main(["race", "--ready", "mine", "--wait"]) == 0
    assert planned["compared"] == ["first"] and planned["failed"] == 0
    assert planned["terms"].notes == ("Packing is off.", "One takes twice as long.")
