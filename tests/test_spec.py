"""RunSpec: all problems at once, each with its value and the way out."""

from __future__ import annotations

import copy
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
        ("method", "target_modules", [], 'must be list or "all-linear"'),
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
    assert RunSpec.from_stored(stored) == RunSpec.from_json(RunSpec().to_json())


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


def test_the_defaults_are_those_that_the_documents_promise() -> None:
    """A silent change of one of these changes every run of everybody who left it alone."""
    spec = RunSpec.from_json({})
    train = {
        "batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": "auto", "epochs": 1.0,
        "max_steps": None, "max_tokens": None, "max_seconds": None, "max_flops": None,
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.03, "optimizer": "adamw", "momentum": 0.0,
        "weight_decay": 0.0, "max_grad_norm": 1.0, "precision": "auto",
        "adapter_precision": "auto", "loss_implementation": "fused",
        "activation_checkpointing": "auto",
        "checkpointed_layers": None, "compile": "auto", "seed": 0, "eval_steps": None,
        "save_steps": None, "early_stopping": None, "sample_steps": None, "forgetting_probe": "off",
        "keep_best": 3, "keep_last": 2,
    }  # fmt: skip
    stored = spec.to_json()
    assert {key: stored["train"][key] for key in train} == train
    data = {
        "format": "auto", "on_invalid_row": "refuse", "objective": "auto", "template": "auto",
        "system_prompt": None, "max_examples": None, "eval_fraction": 0.05, "eval_dataset": None,
        "max_length": 512, "truncation": "right", "packing": "auto", "loss_on": "assistant",
        "group_by_length": "off", "general_fraction": 0.0, "general_dataset": "base",
    }  # fmt: skip
    assert {key: stored["data"][key] for key in data} == data
    assert stored["hardware"]["ignore_memory"] is False, "Nobody overrides the forecast unasked."
    assert spec.method["name"] == "lora"


def test_every_section_is_read_and_every_key_is_kept() -> None:
    value = {
        "name": "n", "model": "m", "init_from_run": "run:x", "method": {"name": "lora", "rank": 3},
        "data": {"max_length": 99}, "train": {"seed": 5}, "hardware": {"ignore_memory": True},
    }  # fmt: skip
    spec = RunSpec.from_json(value)
    for whole in (spec, RunSpec.from_stored(spec.to_json() | {"v": 1, "asked": {}})):
        assert (whole.name, whole.model, whole.init_from_run) == ("n", "m", "run:x")
        assert whole.method["rank"] == 3 and whole.method_config.rank == 3
        assert whole.data.max_length == 99 and whole.train.seed == 5
        assert whole.hardware.ignore_memory is True
    assert "unknown key 'colour'" in problems({"colour": 1})["colour"]
    assert set(problems({"hardware": {"devices": 2}, "data": {"x": 1}})) == {
        "hardware.devices", "data.x",
    }  # fmt: skip


FORMER = {
    ("train", "accumulation"): ("gradient_accumulation_steps", 3),
    ("train", "warmup"): ("warmup_ratio", 0.2),
    ("train", "schedule"): ("lr_scheduler_type", "constant"),
    ("train", "eval_every"): ("eval_steps", 7),
    ("train", "save_every"): ("save_steps", 8),
    ("train", "sample_every"): ("sample_steps", 9),
    ("train", "loss"): ("loss_implementation", "plain"),
    ("train", "probe"): ("forgetting_probe", "on"),
    ("data", "held_out"): ("eval_dataset", "builtin:made-up-facts@held-out"),
    ("data", "bucketing"): ("group_by_length", "on"),
    ("data", "slots"): ("placeholders", {"name": "Wren"}),
    ("data", "bad_rows"): ("on_invalid_row", "skip"),
    ("data", "general_mix"): ("general_fraction", 0.1),
    ("data", "general_set"): ("general_dataset", "builtin:persona-chats"),
}


def test_the_names_of_earlier_versions_are_read_and_todays_are_written() -> None:
    for (section, former), (name, value) in FORMER.items():
        for read in (RunSpec.from_json, RunSpec.from_stored):
            stored = read({section: {former: value}}).to_json()[section]
            assert stored[name] == value and former not in stored, f"{section}.{former}"
    assert RunSpec.from_stored({"start_from": "run:a"}).init_from_run == "run:a"
    assert RunSpec.from_json({"start_from": "run:a"}).init_from_run == "run:a"
    assert RunSpec.requested({"asked": {"name": "a"}}) == {"name": "a"}
    assert RunSpec.requested({"requested": {"name": "b"}, "asked": {}}) == {"name": "b"}
    lora = {
        "name": "lora",
        "targets": ["q_proj"],
        "start": "pissa",
        "rslora": True,
        "lr_ratio": 4.0,
    }
    for spec_read in (RunSpec.from_json({"method": lora}), RunSpec.from_stored({"method": lora})):
        config = spec_read.method_config
        assert config.target_modules == ["q_proj"] and config.init_lora_weights == "pissa"
        assert config.use_rslora is True and config.loraplus_lr_ratio == 4.0
    prompt = RunSpec.from_json({"method": {"name": "prompt", "tokens": 5, "start": "random"}})
    assert (prompt.method_config.num_virtual_tokens, prompt.method_config.init) == (5, "random")


def test_a_field_is_given_under_one_of_its_names() -> None:
    both = {"train": {"accumulation": 2, "gradient_accumulation_steps": 3}}
    assert problems(both) == {
        "train.accumulation": "is the former name of 'gradient_accumulation_steps', which is there "
        "too. Give one of them."
    }
    assert RunSpec.from_stored(both).train.gradient_accumulation_steps == 3, "today's name holds"
    for setting in ("train.accumulation=5", "train.gradient_accumulation_steps=5"):
        for key in ("accumulation", "gradient_accumulation_steps"):
            changed = RunSpec.from_json(spec.override({"train": {key: 2}}, [setting]))
            assert changed.train.gradient_accumulation_steps == 5, "the later setting holds"
    changed = RunSpec.from_json(spec.override({"start_from": "run:a"}, ["init_from_run=run:b"]))
    assert changed.init_from_run == "run:b"
    method = {"name": "lora", "targets": ["q_proj"]}
    changed = RunSpec.from_json(spec.override({"method": method}, ["method.target_modules=v_proj"]))
    assert changed.method_config.target_modules == ["v_proj"]
    assert "Did you mean 'eval_steps'?" in problems({"train": {"eval_step": 1}})["train.eval_step"]


def test_settings_are_json_where_they_can_be() -> None:
    given = {"train": {"batch_size": 4}, "method": {"name": "lora"}}
    changed = spec.override(
        given,
        ["train.batch_size=2", "train.max_steps=null", "data.packing=true", "name=a=b",
         'method.target_modules=["q_proj"]', "data.eval_fraction=0.5",
         "data.system_prompt=Be kind."],
    )  # fmt: skip
    assert changed["train"] == {"batch_size": 2, "max_steps": None}
    assert changed["data"] == {
        "packing": True, "eval_fraction": 0.5, "system_prompt": "Be kind.",
    }  # fmt: skip
    assert changed["name"] == "a=b" and changed["method"]["target_modules"] == ["q_proj"]
    assert given == {"train": {"batch_size": 4}, "method": {"name": "lora"}}
    with pytest.raises(LabError, match="'name' is not a section"):
        spec.override({"name": "x"}, ["name.first=y"])


DAMAGES: list[tuple[str, Any]] = [
    ("model", None),
    ("method", None),
    ("method", {"name": "lorra"}),
    ("method", {"name": "lora", "rank": "many"}),
    ("train", []),
    ("train", {"batch_size": -1}),
    ("data", "builtin:persona-chats"),
    ("data", {"max_length": 3}),
]


@pytest.mark.parametrize(("section", "value"), DAMAGES)
def test_a_run_with_a_damaged_spec_is_not_used_as_another_one(
    trained: list[Any], tmp_path: Path, section: str, value: Any
) -> None:
    from lab.chat import models as chat_models
    from lab.evals.held_out import evaluate
    from lab.export.merge import merge
    from lab.preflight import initial_weights

    run = trained[1]
    whole = json.loads(run.spec.read_text())
    assert RunSpec.of_run(run).to_json() == RunSpec.from_stored(whole).to_json()
    run.spec.write_text(json.dumps(whole | {section: value}))
    named = chat_models.ModelRef(f"run:{run.id}", whole["model"], run)
    for use in (
        lambda: merge(run, tmp_path / "merged"),
        lambda: evaluate([named]),
        lambda: chat_models.load(named),
        lambda: RunSpec.of_run(run),
    ):
        with pytest.raises(LabError, match=f"is damaged: '{section}") as refused:
            use()
        assert run.id in refused.value.message
    spec = RunSpec.from_json({"model": whole["model"], "init_from_run": f"run:{run.id}"})
    (problem,) = initial_weights.problems(spec)
    assert problem.field == "init_from_run" and f"'{section}" in problem.message
    assert not (tmp_path / "merged").exists()


def test_a_spec_of_a_later_version_is_read_without_its_new_keys(trained: list[Any]) -> None:
    run = trained[1]
    whole = json.loads(run.spec.read_text())
    later = copy.deepcopy(whole)
    later["train"]["colour"], later["mood"], later["method"]["sparkle"] = "blue", "good", 1
    run.spec.write_text(json.dumps(later))
    assert RunSpec.of_run(run).to_json() == RunSpec.from_stored(whole).to_json()
    for text in ("", "[]", "{"):
        run.spec.write_text(text)
        with pytest.raises(LabError, match="is missing or damaged"):
            RunSpec.of_run(run)
