"""What would run: each `auto` resolved, and what is refused with its figure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.forecasts import DatasetStats
from lab.preflight import disk_check, validate
from lab.spec import RunSpec
from tests.answers import check, fixes

Make = Callable[..., dict[str, Any]]


def train_of(spec: dict[str, Any]) -> dict[str, Any]:
    answer = check(spec)
    assert answer["problems"] == []
    train: dict[str, Any] = answer["spec"]["train"]
    return train


def test_a_rate_that_is_given_stays_and_auto_is_the_methods_own(make_spec: Make) -> None:
    assert train_of(make_spec("lora", train={"learning_rate": 3e-5}))["learning_rate"] == 3e-5
    rates = {
        name: train_of(make_spec(name, train={"learning_rate": "auto"}))["learning_rate"]
        for name in ("lora", "full", "prompt")
    }
    assert rates["full"] < rates["lora"] < rates["prompt"] == 3e-2


def test_the_most_steps_that_a_run_can_have_are_those_of_rows_that_are_not_packed() -> None:
    train = {"batch_size": 2, "gradient_accumulation_steps": 2}
    data = {"packing": "on", "max_length": 512, "eval_fraction": 0.0}
    spec = RunSpec.from_json({"data": data, "train": train})
    stats = DatasetStats(examples=400, tokens_per_row=50.0)
    assert validate._run_facts(spec, stats, None).max_steps == 126, "a quarter more, and one"


def test_auto_packs_where_the_method_can(make_spec: Make) -> None:
    for name, packing in (("lora", "on"), ("prompt", "off")):
        answer = check(make_spec(name, data={"packing": "auto"}))
        assert answer["spec"]["data"]["packing"] == packing, name


def test_adapters_have_sixteen_bits_only_beside_weights_that_have(make_spec: Make) -> None:
    for precision, adapters in (
        ("float32", "float32"),
        ("mixed", "float32"),
        ("bfloat16", "bfloat16"),
    ):
        train = train_of(make_spec("lora", train={"precision": precision}))
        assert train["adapter_precision"] == adapters, precision
    whole = train_of(make_spec("full", train={"precision": "bfloat16"}))
    assert whole["adapter_precision"] == "float32", "Nothing keeps the bits that would be lost."


def test_the_plan_keeps_what_was_asked_and_what_a_person_wrote(make_spec: Make) -> None:
    spec = make_spec("lora", data={"system_prompt": "Be brief."}) | {"name": "  my run "}
    answer = check(spec)
    assert answer["requested"] == spec, "As it came, with nothing resolved."
    assert answer["spec"]["name"] == "my run"
    assert answer["spec"]["data"]["system_prompt"] == "Be brief."
    assert check(spec | {"name": " "})["spec"]["name"] == "LoRA"
    card = check(make_spec("lora", data={"dataset": "builtin:persona-chats"}))
    prompt = card["spec"]["data"]["system_prompt"]
    assert prompt == card["facts"]["system_prompt"] and isinstance(prompt, str), (
        "What the set's card says is settled once."
    )


def test_rows_are_as_long_as_the_model_reads_and_virtual_tokens_count(make_spec: Make) -> None:
    """The tiny model reads 512 tokens."""
    assert check(make_spec("lora", data={"max_length": 512}))["problems"] == []
    assert check(make_spec("lora", data={"max_length": 513}))["problems"] != []
    method = {"method": {"name": "prompt", "num_virtual_tokens": 12}}
    assert check(make_spec("prompt", data={"max_length": 500}) | method)["problems"] == []
    (problem,) = check(make_spec("prompt", data={"max_length": 501}) | method)["problems"]
    assert problem["field"] == "data.max_length" and "12 are the method's" in problem["message"]


def test_the_disk_must_hold_the_run_beside_a_reserve(
    make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("full")
    need = check(spec)["estimate"]["disk"]["total"]
    real = shutil.disk_usage("/")

    def room(free: int) -> list[Any]:
        usage = real._replace(total=10**15, free=free)
        monkeypatch.setattr(disk_check.shutil, "disk_usage", lambda path: usage)
        problems: list[Any] = check(spec)["problems"]
        return problems

    assert room(need + 200_000_000) == [], "The run and the reserve of 200 MB."
    (problem,) = room(need + 200_000_000 - 1)
    assert problem["field"] == "train.save_steps"
    assert f"{need / 1e9:.2f} GB" in problem["message"]


def test_fixes_are_ranked_by_what_they_save_and_save_something(make_spec: Make) -> None:
    spec = make_spec(
        "full", data={"max_length": 256}, train={"loss_implementation": "plain", "batch_size": 8}
    )
    answer = fixes(spec)
    saved = [fix["saves_bytes"] for fix in answer["fixes"]]
    assert saved == sorted(saved, reverse=True) and saved[-1] > 0 and len(saved) >= 3
    for fix in answer["fixes"]:
        assert answer["peak_bytes"] - fix["peak_bytes"] == fix["saves_bytes"]
    assert {"train.precision": "bfloat16"} not in [fix["changes"] for fix in answer["fixes"]]


def test_what_saves_nothing_is_left_out(make_spec: Make) -> None:
    """Adafactor's work on its largest tensor is the peak here, whatever the layers keep."""
    train = {"batch_size": 1, "loss_implementation": "plain", "optimizer": "adafactor"}
    answer = fixes(make_spec("full", data={"max_length": 16, "loss_on": "all"}, train=train))
    assert [fix["title"] for fix in answer["fixes"]] == [
        "LoRA instead of full fine-tuning",
        "SGD (no optimizer states; needs a 100 times higher learning rate)",
    ], "Only another optimizer takes that work away."
    assert all(fix["saves_bytes"] > 0 for fix in answer["fixes"])


def test_a_model_that_is_not_as_it_says_is_refused(
    make_spec: Make, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    content = json.loads(config.read_text())
    size = content["vocab_size"]
    spec = make_spec() | {"model": str(tmp_path / "copy")}
    assert check(spec)["problems"] == [], f"{size} tokens and {size} rows."
    config.write_text(json.dumps(content | {"vocab_size": size - 1}))
    (problem,) = check(spec)["problems"]
    assert f"{size:,} tokens" in problem["message"] and f"{size - 1:,}" in problem["message"]


def test_a_template_that_reads_the_clock_has_the_day_of_the_check() -> None:
    """So that it writes the same when the run is resumed."""

    def day(template: str, given: str | None = None) -> str | None:
        spec = RunSpec.from_json({"data": {"template_date": given}})
        return validate._date(spec, SimpleNamespace(chat_template=template))

    clock = "{{ strftime_now('%d %B') }}"
    assert day("{{ messages }}") is None and day(clock, "2031-05-06") == "2031-05-06"
    assert day(clock) == date.today().isoformat()


@pytest.mark.parametrize(
    ("method", "train", "field", "says"),
    [
        (
            {"name": "lora", "target_modules": ["q_proj", "lm_head"]}, {},
            "train.loss_implementation", "the fused loss works on a plain head",
        ),
        ({"name": "lora"}, {"optimizer": "paged_adamw8bit"}, "train.optimizer", "no GPU here"),
        (
            {"name": "lora", "target_modules": ["no_such_layer"]}, {}, "method.target_modules",
            "no_such_layer",
        ),
        (
            {"name": "full"}, {"optimizer": "sgd_in_backward", "gradient_accumulation_steps": 2},
            "train.gradient_accumulation_steps", "is 2",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_under_its_field(
    make_spec: Make, method: dict[str, Any], train: dict[str, Any], field: str, says: str
) -> None:
    problems = check(make_spec("lora", train=train) | {"method": method})["problems"]
    (message,) = [problem["message"] for problem in problems if problem["field"] == field]
    assert says in message


def test_arguments_that_no_template_can_be_given_are_told_with_the_rest(make_spec: Make) -> None:
    data = {"template_args": {"messages": 1}, "template_date": "soon", "max_length": 513}
    problems = {each["field"]: each["message"] for each in check(make_spec(data=data))["problems"]}
    assert "'messages' cannot be set" in problems["data.template_args"]
    assert "'soon' is not a date" in problems["data.template_date"]
    assert "data.max_length" in problems, "The rest is looked at all the same."
