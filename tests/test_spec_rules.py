"""Settings without effect: what each rule says of every pair of settings, and of defaults."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from lab import methods, presets, spec_rules
from lab.cli import demo
from lab.errors import SpecError
from lab.runs import resume_settings
from lab.spec import RunSpec
from lab.spec_rules import RULES, RunFacts
from lab.spec_sections import DataSpec, TrainSpec
from tests.answers import check

NO_ROWS = {"data.eval_fraction": 0.0}
CHATS, TEXT = RunFacts(60, has_chats=True), RunFacts(60, has_chats=False)


def spec_of(settings: dict[str, Any]) -> RunSpec:
    value: dict[str, Any] = {"method": {"name": "lora"}}
    for field, setting in settings.items():
        section, _, name = field.partition(".")
        value.setdefault(section, {})[name] = setting
    return RunSpec.from_json(value)


def found(settings: dict[str, Any], facts: RunFacts = CHATS) -> tuple[set[str], set[str]]:
    """(fields that are refused, fields that are warned of)."""
    refused, warnings = spec_rules.problems(spec_of(settings), facts)
    return {problem.field for problem in refused}, {text.split()[0] for text in warnings}


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # field, settings that are refused, what makes them sensible
    ("train.early_stopping", {"train.early_stopping": 2, **NO_ROWS}, {"data.eval_dataset": "x"}),
    (
        "train.early_stopping",
        {"train.early_stopping": 2, "train.eval_steps": 0},
        {"train.eval_steps": 10},
    ),
    (
        "train.early_stopping",
        {"train.early_stopping": 5, "train.eval_steps": 10},
        {"train.early_stopping": 4},
    ),
    ("train.eval_steps", {"train.eval_steps": 5, **NO_ROWS}, {"train.eval_steps": 0}),
    ("train.keep_best", {"train.keep_best": 5, **NO_ROWS}, {"train.keep_best": 0}),
    ("train.momentum", {"train.momentum": 0.9}, {"train.optimizer": "sgd"}),
    ("train.momentum", {"train.momentum": 0.9}, {"train.optimizer": "sgd_in_backward"}),
    (
        "train.checkpointed_layers",
        {"train.checkpointed_layers": 2, "train.activation_checkpointing": "off"},
        {"train.activation_checkpointing": "on"},
    ),
    (
        "data.group_by_length",
        {"data.group_by_length": "on", "data.packing": "on"},
        {"data.packing": "auto"},
    ),
    ("data.general_dataset", {"data.general_dataset": "x"}, {"data.general_fraction": 0.1}),
    (
        "method.text",
        {"method.name": "prompt", "method.text": "Say it."},
        {"method.init": "text"},
    ),
    (
        "method.projection_width",
        {"method.name": "prefix", "method.projection_width": 64},
        {"method.projection": True},
    ),
    ("method.layers", {"method.name": "ptuning", "method.layers": 3}, {"method.encoder": "lstm"}),
    (
        "method.dropout",
        {"method.name": "ptuning", "method.dropout": 0.1},
        {"method.encoder": "lstm"},
    ),
    (
        "method.dropout",
        {
            "method.name": "ptuning",
            "method.dropout": 0.1,
            "method.encoder": "lstm",
            "method.layers": 1,
        },
        {"method.layers": 2},
    ),
    (
        "method.reduction",
        {"method.name": "bottleneck", "method.reduction": 8.0, "method.size": 4},
        {"method.size": None},
    ),
    (
        "method.patience",
        {"method.name": "progressive", "method.patience": 2, "method.trigger": "steps"},
        {"method.trigger": "stall"},
    ),
    (
        "method.patience",
        {"method.name": "progressive", "method.patience": 9},
        {"method.patience": 8},
    ),
    (
        "method.min_delta",
        {"method.name": "progressive", "method.min_delta": 0.1, "method.trigger": "steps"},
        {"method.trigger": "stall"},
    ),
    (
        "method.every",
        {"method.name": "progressive", "method.every": 20},
        {"method.trigger": "steps"},
    ),
    (
        "method.every",
        {"method.name": "progressive", "method.every": 61, "method.trigger": "steps"},
        {"method.every": 60},
    ),
]
WARNED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "data.eval_fraction",
        {"data.eval_fraction": 0.2, "data.eval_dataset": "x"},
        {"data.eval_fraction": 0.0},
    ),
    ("train.eval_steps", {"train.eval_steps": 61}, {"train.eval_steps": 60}),
    ("train.save_steps", {"train.save_steps": 61}, {"train.save_steps": 60}),
    ("train.sample_steps", {"train.sample_steps": 61}, {"train.sample_steps": 60}),
    ("train.keep_best", {"train.keep_best": 5, "train.save_steps": 0}, {"train.save_steps": 5}),
    ("train.keep_last", {"train.keep_last": 5, "train.save_steps": 0}, {"train.save_steps": 5}),
    ("train.warmup_ratio", {"train.warmup_ratio": 0.008}, {"train.warmup_ratio": 0.009}),
    ("train.epochs", {"train.epochs": 2.0, "train.max_steps": 60}, {"train.max_steps": None}),
    ("train.epochs", {"train.epochs": 2.0, "train.max_tokens": 60}, {"train.max_tokens": None}),
    (
        "data.group_by_length",
        {"data.group_by_length": "on", "train.batch_size": 1},
        {"train.batch_size": 2},
    ),
    (
        "train.weight_decay",
        {"train.weight_decay": 0.5, "method.name": "ia3"},
        {"method.name": "adalora"},
    ),
    ("method.last_rank", {"method.last_rank": 16}, {"method.last_rank": 8}),
    ("method.last_alpha", {"method.last_alpha": 32.0}, {"method.last_alpha": 8.0}),
    ("method.last_alpha", {"method.last_alpha": 32.0}, {"method.last_rank": 8}),
    ("method.last_alpha", {"method.last_alpha": 32.0}, {"method.layer_ranks": [4]}),
    ("method.use_rslora", {"method.use_rslora": True, "method.rank": 1}, {"method.last_rank": 4}),
    ("method.alpha", {"method.alpha": 8.0, "method.layer_alphas": [4.0]}, {"method.alpha": 32.0}),
    (
        "method.rank",
        {"method.rank": 8, "method.layer_alphas": [4.0], "method.layer_ranks": [4]},
        {"method.layer_alphas": None},
    ),
    (
        "method.layers_at_once",
        {"method.name": "progressive", "method.layers_at_once": 3, "method.most_layers": 2},
        {"method.most_layers": 3},
    ),
]


@pytest.mark.parametrize(("field", "settings", "way_out"), REFUSED)
def test_what_cannot_act_is_refused_and_its_way_out_is_one(
    field: str, settings: dict[str, Any], way_out: dict[str, Any]
) -> None:
    assert found(settings) == ({field}, set())
    assert found(settings | way_out)[0] == set(), "The way out is one."
    (problem,) = spec_rules.problems(spec_of(settings), CHATS)[0]
    value = json.dumps(settings[field]).strip('"')
    assert problem.message.startswith(f"is {value} and has no effect: "), problem.message


@pytest.mark.parametrize(("field", "settings", "way_out"), WARNED)
def test_what_is_only_idle_is_said(
    field: str, settings: dict[str, Any], way_out: dict[str, Any]
) -> None:
    assert found(settings) == (set(), {field})
    assert found(settings | way_out) == (set(), set())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.truncation", "left"),
        ("data.system_prompt", "Be brief."),
        ("data.template", "chatml"),
        ("data.loss_on", "completion"),
    ],
)
def test_settings_of_chats_are_refused_for_text(field: str, value: str) -> None:
    assert found({field: value}, TEXT) == ({field}, set())
    assert found({field: value, "data.objective": "pretraining"}, RunFacts()) == ({field}, set())
    assert found({field: value}, CHATS) == found({field: value}, RunFacts()) == (set(), set())


def test_what_a_template_does_not_read_is_said() -> None:
    settings = {
        "data.template_args": {"enable_thinking": False},
        "data.template_date": "2026-01-31",
    }
    for template, idle in (
        ("{{ messages }}", {"data.template_args", "data.template_date"}),
        ("{% if enable_thinking %}{% endif %}", {"data.template_date"}),
        ("{{ enable_thinking_now }}{{ strftime_now('%d') }}", {"data.template_args"}),
        ("{{ enable_thinking }}{{ strftime_now('%d') }}", set()),
        (None, set()),
    ):
        assert found(settings, RunFacts(60, True, template)) == (set(), idle), template
    assert found(settings, TEXT)[0] == {"data.template_args", "data.template_date"}


@pytest.mark.every_method
@pytest.mark.parametrize("method", [m for m in methods.all_methods() if m.trains_only_vectors])
def test_a_method_that_trains_only_vectors_has_nothing_that_decays(method: Any) -> None:
    from lab.methods import Context
    from lab.train.optimizer import make_optimizer
    from tests.methods import tiny

    spec = spec_of(
        {"method.name": method.name, "train.weight_decay": 0.5, "train.learning_rate": 1e-3}
    )
    model = tiny.make_model("llama")
    context = Context(spec, tiny.make_chat_tokenizer())
    method.prepare(model, spec.method_config, context)
    model = method.apply(model, spec.method_config, context)
    groups = make_optimizer(model, method, spec).param_groups
    assert {group["weight_decay"] for group in groups} == {0.0}


def test_what_text_does_anyway_may_be_said() -> None:
    assert found({"data.loss_on": "all", "data.system_prompt": ""}, TEXT) == (set(), set())
    mixed = {"data.template": "chatml", "data.general_fraction": 0.1}
    assert found(mixed, TEXT) == (set(), set()), "The general rows are chats."


def test_what_is_not_known_is_not_refused() -> None:
    for _, settings, _ in WARNED[1:4]:
        assert found(settings, RunFacts()) == (set(), set())
    assert found({"train.early_stopping": 30, "train.eval_steps": 10}, RunFacts()) == (set(), set())
    assert found({"train.early_stopping": 9}, RunFacts())[0] == {"train.early_stopping"}
    assert found({"train.early_stopping": 8}, RunFacts()) == (set(), set())


# one other value than the default for each field that a rule looks at
OTHERS: dict[str, Any] = {
    "train.early_stopping": 2, "train.eval_steps": 5, "train.save_steps": 5,
    "train.sample_steps": 5, "train.keep_best": 1, "train.keep_last": 1, "train.warmup_ratio": 0.2,
    "train.epochs": 2.0, "train.max_steps": 60, "train.max_tokens": 10**6,
    "train.max_seconds": 60.0, "train.max_flops": 1e15, "train.momentum": 0.9,
    "train.optimizer": "sgd", "train.checkpointed_layers": 1,
    "train.activation_checkpointing": "off", "train.batch_size": 1, "data.eval_fraction": 0.0,
    "data.eval_dataset": "x", "data.packing": "on", "data.group_by_length": "on",
    "data.general_fraction": 0.1,
    "data.general_dataset": "x", "data.truncation": "left", "data.system_prompt": "Be brief.",
    "data.template": "chatml", "data.loss_on": "completion", "data.objective": "chat",
}  # fmt: skip
# of all pairs of those, these and no others
ALONE = {"train.momentum", "data.general_dataset"}  # refused unless the other makes it sensible
SENSIBLE = {
    ("train.momentum", "train.optimizer"),
    ("data.general_dataset", "data.general_fraction"),
}
PAIRS = {
    ("train.early_stopping", "data.eval_fraction"): "train.early_stopping",
    ("train.eval_steps", "data.eval_fraction"): "train.eval_steps",
    ("train.keep_best", "data.eval_fraction"): "train.keep_best",
    ("train.checkpointed_layers", "train.activation_checkpointing"): "train.checkpointed_layers",
    ("data.packing", "data.group_by_length"): "data.group_by_length",
}


def test_of_all_pairs_exactly_those_are_refused() -> None:
    for first, second in itertools.combinations(OTHERS, 2):
        expected = {field for field in (first, second) if field in ALONE}
        for alone, other in SENSIBLE:
            if {first, second} == {alone, other}:
                expected -= {alone}
        expected |= {field for pair, field in PAIRS.items() if set(pair) == {first, second}}
        settings = {first: OTHERS[first], second: OTHERS[second]}
        assert found(settings)[0] == expected, f"{settings}: refused other settings."


def test_a_default_is_never_refused_beside_anything() -> None:
    defaults = {
        f"{section}.{field.name}": field.default
        for section, kind in (("train", TrainSpec), ("data", DataSpec))
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }
    for field, value in OTHERS.items():
        settings = {key: other for key, other in defaults.items() if key != field} | {field: value}
        expected = {field} if field in ALONE else set()
        for facts in (CHATS, RunFacts(), RunFacts(10_000, has_chats=True)):
            assert found(settings, facts)[0] == expected, field


@pytest.mark.every_method
def test_no_method_is_refused_as_it_comes() -> None:
    for method in methods.all_methods():
        for facts in (CHATS, TEXT, RunFacts(1)):
            assert found({"method.name": method.name}, facts) == (set(), set()), method.name


@pytest.mark.every_method
def test_every_rule_is_of_fields_that_exist() -> None:
    names = {
        f"method.{key}" for method in methods.all_methods() for key in method.config().__dict__
    }
    for section, kind in (("train", TrainSpec), ("data", DataSpec)):
        names |= {f"{section}.{field.name}" for field in dataclasses.fields(kind)}
    for rule in RULES:
        assert {rule.field, *rule.others} <= names, rule


def test_presets_and_the_demo_break_no_rule() -> None:
    specs = [preset.changes for preset in presets.PRESETS] + [demo.spec("full"), demo.spec("lora")]
    for value in specs:
        steps = (value.get("train") or {}).get("max_steps")
        assert spec_rules.problems(RunSpec.from_json(value), RunFacts(steps, True)) == ([], [])


def test_the_check_refuses_and_warns(make_spec: Any, tmp_path: Path) -> None:
    value = make_spec(
        data={"eval_fraction": 0}, train={"early_stopping": 2, "save_steps": 40, "eval_steps": 0}
    )
    (problem,) = check(value)["problems"]
    assert problem["field"] == "train.early_stopping" and "held out" in problem["message"]
    del value["train"]["early_stopping"]
    assert "train.save_steps is 40 and" in " ".join(check(value)["facts"]["warnings"])
    text = tmp_path / "text.txt"
    text.write_text("one two three four five\n" * 40)
    value = make_spec(data={"dataset": str(text), "loss_on": "completion", "system_prompt": "Hi"})
    fields = {problem["field"] for problem in check(value)["problems"]}
    assert fields == {"data.loss_on", "data.system_prompt"}, "All at once, of what the rows are."
    value = make_spec(train={"max_steps": None, "epochs": 1.0, "early_stopping": 30})
    (problem,) = check(value)["problems"]
    assert problem["field"] == "train.early_stopping", "Of a run whose steps its rows tell."


def test_rows_grouped_by_length_are_not_packed_by_themselves(make_spec: Any) -> None:
    value = make_spec(data={"packing": "auto", "group_by_length": "on"})
    assert check(value)["spec"]["data"]["packing"] == "off"
    assert check(make_spec(data={"packing": "auto"}))["spec"]["data"]["packing"] == "on"


def test_resuming_refuses_what_it_makes_idle(trained: list[Any]) -> None:
    run = trained[1]
    with pytest.raises(SpecError) as refused:
        resume_settings.merged_changes(
            run, ["train.early_stopping=2", "train.eval_steps=0", "train.max_steps=40"]
        )
    assert [problem.field for problem in refused.value.problems] == ["train.early_stopping"]
    settings = ["train.early_stopping=2", "train.max_steps=40"]
    assert resume_settings.merged_changes(run, settings)["early_stopping"] == 2


def test_no_rule_judges_a_method_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown method leaves a spec without its options."""
    rule = next(rule for rule in RULES if rule.field == "method.rank")
    rule = dataclasses.replace(rule, is_idle=lambda spec, facts: spec.method["rank"] == 1)
    monkeypatch.setattr(spec_rules, "RULES", (rule,))
    spec = RunSpec.parse({"method": {"name": "lorra"}}, [])
    assert spec_rules.broken(spec, RunFacts(10, True), frozenset({"method.name"})) == []
