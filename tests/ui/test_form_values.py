"""What a person types on the form, and what the form says it will do."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from lab import formatting, methods, presets
from lab.atomic_files import write_json
from lab.errors import LabError
from lab.forecasts import StepSettings
from lab.preflight import client
from lab.spec import MAX_SPEC_BYTES, RunSpec
from lab.ui import (
    form,
    form_fields,
    form_problems,
    method_card,
    new_run_view,
    saved_specs,
    start_bar,
)
from tests.ui.screen import Screen
from tests.ui.test_panels import make_run


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    drawn = Screen()
    monkeypatch.setattr(form, "st", drawn)
    for module in (form_fields, form_problems, method_card, new_run_view, start_bar):
        monkeypatch.setattr(module, "st", drawn)
    return drawn


def test_a_spec_survives_the_form(screen: Screen) -> None:
    """Filled in and read again: lists, objects, words, numbers and what is not set."""
    spec = RunSpec.from_json(
        {
            "name": "mine", "model": "org/base",
            "method": {"name": "lora", "rank": 8, "targets": ["q_proj", "v_proj"],
                       "layer_ranks": [2, 8], "layer_alphas": [4.0, 8.5]},
            "data": {"dataset": "/a.jsonl", "columns": {"prompt": "q", "completion": "a"},
                     "template_args": {"thinking": False, "depth": 3}, "max_examples": None},
            "train": {"learning_rate": 2e-4, "max_steps": 30, "weight_decay": 0},
        }
    )  # fmt: skip
    form.load(spec)
    assert RunSpec.from_json(form.value()) == spec
    auto = dataclasses.replace(spec, train=dataclasses.replace(spec.train, learning_rate="auto"))
    form.load(auto)
    assert form.value()["train"]["learning_rate"] == "auto"


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"help": "Rows.", "min": 1, "max": 64}, "Rows. (at least 1, at most 64)"),
        ({"help": "Rate.", "above": 0.0}, "Rate. (above 0)"),
        ({"help": "Name."}, "Name."),
    ],
)
def test_help_says_the_bounds(limits: dict[str, Any], text: str) -> None:
    assert form_fields.help_text(limits) == text


def test_a_problem_stands_under_its_field_as_text(screen: Screen) -> None:
    form.load(RunSpec())
    screen.session_state["new.problems_now"] = {"train.seed": "is [x]"}
    form_problems.show("train.seed")
    form_problems.show("train.epochs")
    (drawn,) = [args[0] for kind, args, _ in screen.calls if kind == "markdown"]
    assert drawn == ":red[:material/error: **Seed** is \\[x\\]]"


def test_bounds_are_checked_without_the_planner(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: Any) -> None:
        raise AssertionError("asked the planner")

    monkeypatch.setattr(client.planner, "ask", ask)
    form.load(RunSpec())
    assert form_problems.refresh().train == RunSpec().train and form_problems.blocking() == {}
    screen.session_state["new.train.learning_rate"] = "5"
    screen.session_state["new.method.lora.rank"] = 0
    form_problems.refresh()
    problems = form_problems.blocking()
    assert set(problems) == {"train.learning_rate", "method.rank"}
    assert form_problems.sentence("method.rank", problems["method.rank"]).startswith(
        "**LoRA rank** is 0; it must be at least 1"
    )
    assert form_problems.any_of("method.lora", ["rank"])
    assert not form_problems.any_of("method.lora", ["alpha"])


def bar(screen: Screen, **changes: Any) -> str:
    base = {
        "model": "org/base", "method": {"name": "lora"},
        "data": {"dataset": "/a.jsonl", "eval_fraction": 0.2, "max_length": 2048},
        "train": {"batch_size": 2, "gradient_accumulation_steps": 4, "epochs": 3,
        "warmup_ratio": 0.1},
    }  # fmt: skip
    merged = {
        key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value
        for key, value in base.items()
    }
    spec = RunSpec.from_json(merged | {"init_from_run": changes.get("init_from_run", "")})
    form.load(spec)
    return start_bar._what(spec, method_card.specs()).replace("\\", "")


def test_the_bar_says_what_would_be_trained(screen: Screen) -> None:
    text = bar(screen)
    assert text == "**LoRA r16** · base on a.jsonl · 3 epochs at 2e-4 (default)"
    text = bar(
        screen, init_from_run="run:x",
        train={"max_steps": 1200, "max_tokens": 50_000, "learning_rate": 3e-4},
    )  # fmt: skip
    assert "1,200 steps or 50,000 tokens at 3e-4" in text
    assert text.endswith("from the weights of run:x")


def test_two_methods_share_everything_but_method_and_rate(screen: Screen) -> None:
    pair = presets.PAIRS[0]
    form.load(RunSpec.parse(pair.changes, []))
    screen.session_state["new.preset"] = pair.name
    method_card.fill_pair(pair)
    screen.session_state["new.pair.a.rate"] = "1e-3"
    first, second = method_card.specs()
    assert [spec["method"]["name"] for spec in (first, second)] == list(pair.methods)
    assert first["train"].pop("learning_rate") == 1e-3
    assert second["train"].pop("learning_rate") == "auto"
    for key in ("model", "data", "train", "hardware", "init_from_run"):
        assert first[key] == second[key], key
    for spec in (first, second):
        RunSpec.from_json(spec)
    assert first["name"] != second["name"]
    assert start_bar._what(RunSpec(), [first | {"train": {"learning_rate": 1e-3}},
                                       second | {"train": {"learning_rate": "auto"}}]).startswith(
        "**LoRA r16** against **Full fine\\-tuning**"
    )  # fmt: skip


def test_a_side_of_a_pair_cannot_be_the_method_of_the_other(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen.columns = lambda count, gap: [screen] * count  # type: ignore[attr-defined]
    monkeypatch.setattr(method_card, "_options", lambda method: None)
    form.load(RunSpec())
    method_card.fill_pair(presets.PAIRS[0])
    method_card._pair()
    lists = [args[1] for kind, args, _ in screen.calls if kind == "selectbox"]
    first, second = presets.PAIRS[0].methods
    assert first in lists[0] and second not in lists[0]
    assert second in lists[1] and first not in lists[1]
    assert len(lists[0]) == len(lists[1]) > 10, "any other method can be chosen"
    helps = [named["help"] for named in screen.named("text_input")]
    for text, name in zip(helps, (first, second), strict=True):
        assert formatting.rate(methods.get(name).default_lr) in text, "auto is this method's"


def test_all_problems_are_counted_and_the_first_is_named(screen: Screen) -> None:
    form.load(RunSpec())
    screen.session_state["new.problems_now"] = {"name": "is long."}
    start_bar._words(RunSpec(), [form.value()])
    screen.session_state["new.problems_now"] = {f"train.f{n}": "is bad." for n in range(200)}
    start_bar._words(RunSpec(), [form.value()])
    assert screen.texts("markdown") == [
        ":red[:material/error: **1 problem:** **Run name** is long.]",
        ":red[:material/error: **200 problems:** **train.f0** is bad.]",
    ]


@pytest.mark.parametrize(
    ("trains_on", "name", "begins_with"),
    [(False, "wren (copy)", "run:first"), (True, "wren (continued)", "run:{}")],
)
def test_a_run_is_repeated_as_it_was_asked_for_or_trained_on(
    screen: Screen, trains_on: bool, name: str, begins_with: str
) -> None:
    run = make_run(1)
    requested = {
        "name": "wren", "model": "org/base", "init_from_run": "run:first",
        "method": {"name": "lora", "rank": 8}, "data": {"dataset": "mine.jsonl"},
        "train": {"learning_rate": "auto", "max_steps": 30},
    }  # fmt: skip
    resolved = RunSpec.from_json(requested).to_json()
    resolved |= {
        "model": "org/base#c0ffee",
        "data": resolved["data"] | {"dataset": "/a/mine.jsonl"},
    }
    resolved["train"] |= {"learning_rate": 3e-4}
    write_json(run.spec, {"v": 1, **resolved, "requested": requested})
    new_run_view.fill_from(run.id, trains_on=trains_on)
    spec = form.value()
    assert (spec["name"], spec["init_from_run"]) == (name, begins_with.format(run.id))
    assert (spec["model"], spec["data"]["dataset"]) == ("org/base#c0ffee", "/a/mine.jsonl")
    assert spec["train"]["learning_rate"] == "auto", "it is worked out again"
    assert (spec["train"]["max_steps"], spec["method"]["rank"]) == (30, 8)
    screen.calls.clear()
    new_run_view.fill_from("20200101-000000-lora-zzzz", trains_on=False)
    assert form.value()["name"] == name and len(screen.texts("warning")) == 1


def test_a_run_or_a_preset_of_ones_own_is_loaded_once(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_specs, "st", screen)
    filled: list[Any] = []
    monkeypatch.setattr(
        new_run_view, "fill_from", lambda run_id, trains_on: filled.append((run_id, trains_on))
    )
    form.load(RunSpec.from_json({"train": {"max_steps": 77}}))
    presets.save("My *own*", form.value())
    (preset,) = presets.saved()
    for option in ("run:abc", f"preset:{preset}"):
        form.load(RunSpec())
        screen.session_state["new.load.which"] = option
        saved_specs._load_chosen()
        assert screen.session_state["new.load.which"] is None
    assert filled == [("abc", False)], "settings alone: it begins with the base model"
    assert form.value()["train"]["max_steps"] == 77


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[1]", "not a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"name": "' + b"x" * MAX_SPEC_BYTES + b'"}', "too large"),
    ],
)
def test_a_file_that_is_no_spec_is_refused_in_words(content: bytes, says: str) -> None:
    assert saved_specs._parse(b'{"name": "mine"}') == {"name": "mine"}
    with pytest.raises(LabError, match=says):
        saved_specs._parse(content)


@pytest.mark.parametrize(
    ("problems", "is_starting", "is_blocked"),
    [({}, False, False), ({"name": "is long."}, False, True), ({}, True, True)],
)
def test_start_waits_for_values_that_can_be_and_for_itself(
    screen: Screen, monkeypatch: pytest.MonkeyPatch,
    problems: dict[str, str], is_starting: bool, is_blocked: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(Screen, "bottom", property(lambda self: self), raising=False)
    monkeypatch.setattr(start_bar, "_words", lambda spec, specs: None)
    starts: list[Any] = []
    monkeypatch.setattr(start_bar, "_start", lambda specs, ticket: starts.append(ticket))
    form.load(RunSpec())
    screen.session_state["new.problems_now"] = problems
    screen.session_state[start_bar.STARTING] = is_starting
    start_bar.draw(RunSpec(), "ticket")
    disabled = {named["key"]: named["disabled"] for named in screen.named("button")}
    assert disabled == {"check": is_blocked, "start": is_blocked}
    assert starts == (["ticket"] if is_starting else [])


def test_costs_are_those_of_both_and_the_larger_memory(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(spec: dict[str, Any]) -> Any:
        size = spec["size"]
        forecast = SimpleNamespace(
            memory=SimpleNamespace(peak_bytes=(size or 0) * 1e9, fits=(size or 0) <= 10),
            runtime=SimpleNamespace(
                whole_s=60.0 * (size or 0), is_measured=size != 1
            ),
            disk=SimpleNamespace(total=2e9), device_bytes=10e9,
        )  # fmt: skip
        return SimpleNamespace(estimate=forecast if size else None, is_complete=size == 0)

    monkeypatch.setattr(start_bar.estimate_panel, "job_for", job)
    first = start_bar._costs([{"size": 1}, {"size": 3}])
    assert first == [
        ":material/timer: about 4 min 00 s", ":material/memory_alt: 3.0 of 10.0 GB",
        ":material/hard_drive: 4.00 GB",
    ]  # fmt: skip
    (cost,) = start_bar._costs([{"size": None}])
    assert cost.startswith(":gray[") and "4 min 00 s" in cost and "recalculating" in cost
    assert start_bar._costs([{"size": 0}]) == [":gray[no estimate]"], "it does not wait for ever"
    assert start_bar._costs([{"size": 12}])[1] == (
        ":red[:material/memory_alt: needs 12.0 of 10.0 GB]"
    )


def test_a_plan_is_shown_for_the_form_that_was_checked_and_no_other(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_bar.form, "value", lambda: {"a": 1})
    checked = SimpleNamespace(
        forecast=SimpleNamespace(
            memory=SimpleNamespace(trainable=2e6, parameters=1e9),
            settings=StepSettings(longest_row=311, knows_rows=True),
        ),
        stats=SimpleNamespace(
            warnings=["Odd [rows]."], examples=1200, tokens_per_row=90.4, loss_tokens_per_row=30.2
        ),
        spec=SimpleNamespace(model="org/base#c0ffee"),
    )
    assert start_bar.checked_model() == "", "nothing was checked yet"
    screen.session_state["new.checked"] = {"a": 1}, checked
    start_bar.show_checked()
    text = "\n".join(screen.texts())
    for words in (
        "Ready to start.",
        "2.0 M of 1.0 B parameters are trainable",
        "1,200 examples, about 90 tokens each, 30 of them trained · memory for the longest row of "
        "the dataset: 311 tokens",
        "Odd [rows].",
    ):
        assert words in text, text
    assert start_bar.checked_model() == "org/base#c0ffee"
    before = len(screen.calls)
    screen.session_state["new.checked"] = {"a": 2}, checked
    start_bar.show_checked()
    assert len(screen.calls) == before, "the form has changed since"
    assert start_bar.checked_model() == "", "perhaps to another model"


def test_the_length_of_a_run_has_one_unit_unless_a_spec_has_more(screen: Screen) -> None:
    form.load(RunSpec())
    screen.session_state["new.unit"] = "max_tokens"
    new_run_view._change_unit()
    train = form.value()["train"]
    assert train["max_tokens"] == 100_000 and train["max_steps"] is None
    screen.session_state["new.unit"] = "epochs"
    new_run_view._change_unit()
    train = form.value()["train"]
    assert train["max_tokens"] is None and train["epochs"] == 1.0


def test_folded_options_say_how_many_differ(screen: Screen) -> None:
    form.load(RunSpec())
    config = methods.get("lora").config
    names = ["use_rslora", "use_dora", "loraplus_lr_ratio"]
    assert form_fields.changes("method.lora", config, names) == 0
    screen.session_state["new.method.lora.use_dora"] = True
    assert form_fields.changes("method.lora", config, names) == 1
