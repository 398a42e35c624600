"""A race gives every method the same data and budget, or does not start at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import cli, methods, paths
from lab.compare import race_start
from lab.compare.race import Budget
from lab.errors import LabError, SpecError
from lab.runs import index
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
