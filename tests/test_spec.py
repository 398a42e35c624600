"""RunSpec: all problems at once, each with its value and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab import spec
from lab.errors import LabError, SpecError
from lab.spec import RunSpec


def problems(value: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        RunSpec.from_json(value)
    return {problem.field: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("train", "learning_rate", 0, "is 0; it must be above 0"),
        ("train", "learning_rate", 5, "is 5; it must be at most 1"),
        ("train", "learning_rate", float("nan"), "is nan"),
        ("train", "learning_rate", float("inf"), "is inf"),
        ("train", "learning_rate", "fast", "\"auto\", is 'fast'"),
        ("train", "batch_size", -1, "is -1; it must be at least 1"),
        ("train", "batch_size", 2.5, "must be integer, is 2.5"),
        ("train", "batch_size", True, "must be integer, is true"),
        ("train", "max_steps", 0, "is 0; it must be at least 1"),
        ("train", "precision", "fp16", "Choose one of: auto, float32"),
        ("train", "seed", -1, "at least 0"),
        ("data", "eval_fraction", 1.5, "at most 0.9"),
        ("data", "max_length", 10**9, "at most 1,048,576"),
        ("data", "dataset", "a\0b", "control characters"),
        ("data", "dataset", 7, "must be text"),
        ("method", "rank", 0, "is 0; it must be at least 1"),
        ("method", "targets", [], "must be text or list"),
        ("method", "rnak", 4, "Did you mean 'rank'?"),
        ("hardware", "devices", 2, "at most 1"),
    ],
)
def test_a_bad_value_is_named_with_the_way_out(
    section: str, key: str, value: Any, says: str
) -> None:
    part = {"name": "lora", key: value} if section == "method" else {key: value}
    assert says in problems({section: part})[f"{section}.{key}"]


@pytest.mark.parametrize("name", ["a/b", "a\\b", "a\0b", "line\nbreak", "x" * 121, 7])
def test_bad_names_are_refused(name: Any) -> None:
    assert "name" in problems({"name": name})


def test_all_problems_come_at_once() -> None:
    found = problems(
        {
            "name": "a/b",
            "colour": "red",
            "method": {"name": "lorra"},
            "train": {"batch_size": 0, "max_steps": -3, "speed": 9},
            "data": {"loss_on": "none"},
        }
    )
    assert set(found) == {
        "name",
        "colour",
        "method.name",
        "train.batch_size",
        "train.max_steps",
        "train.speed",
        "data.loss_on",
    }
    assert "Choose one of: full, " in found["method.name"]


@pytest.mark.parametrize("value", [None, 3, "x", [], True])
def test_a_spec_or_section_that_is_no_object(value: Any) -> None:
    assert "must be a JSON object" in problems(value)["spec"]
    assert "train" in problems({"train": value})


def test_round_trip_and_defaults() -> None:
    first = RunSpec.from_json({"method": "full", "train": {"batch_size": 8.0}})
    assert first.train.batch_size == 8 and isinstance(first.train.batch_size, int)
    assert first.method == {"name": "full", "train_layers": "all", "freeze": None}
    assert RunSpec.from_json(json.loads(json.dumps(first.to_json()))) == first
    assert RunSpec.from_json({}).method_config.rank == 16


def test_booleans_stand_for_on_and_off() -> None:
    assert RunSpec.from_json({"data": {"packing": True}}).data.packing == "on"
    assert RunSpec.from_json({"data": {"packing": False}}).data.packing == "off"


def test_an_old_run_may_hold_keys_of_another_version() -> None:
    stored = RunSpec().to_json()
    stored["train"]["from_the_future"] = 1
    stored["later"] = {}
    assert RunSpec.stored(stored) == RunSpec.from_json(RunSpec().to_json())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "A spec is a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('"x"', "A spec is a JSON object"),
    ],
)
def test_garbage_files(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "spec.json"
    file.write_text(text)
    with pytest.raises(LabError, match=says):
        spec.load(file)


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_bytes(b'{"name": "\xff\xfe"}')
    with pytest.raises(LabError, match="cannot be read"):
        spec.load(file)
    with pytest.raises(LabError, match="There is no file"):
        spec.load(tmp_path / "missing.json")


def test_settings_override_one_field_each() -> None:
    value = {"method": "lora", "train": {"batch_size": 4}}
    changed = spec.override(
        value, ["train.batch_size=2", "method.rank=8", "name=my run", "data.packing=off"]
    )
    assert changed["train"]["batch_size"] == 2
    assert changed["method"] == {"name": "lora", "rank": 8}
    assert changed["name"] == "my run"
    assert value["train"] == {"batch_size": 4}, "the given spec is left alone"
    with pytest.raises(LabError, match=r"section\.key=value"):
        spec.override({}, ["train.batch_size"])
