"""What a person types on the form, and what the form says it will do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lab.spec import RunSpec
from lab.ui import form, new_run_view
from tests.ui.screen import Screen


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    drawn = Screen()
    monkeypatch.setattr(form, "st", drawn)
    monkeypatch.setattr(new_run_view, "st", drawn)
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
    assert form.help_text(limits) == text


def test_a_problem_stands_under_its_field_as_text(screen: Screen) -> None:
    screen.session_state["new.problems"] = {"train.seed": "is [x]"}
    form.problem("train.seed")
    form.problem("train.epochs")
    (drawn,) = [args[0] for kind, args, _ in screen.calls if kind == "markdown"]
    assert drawn == ":red[:material/error: is \\[x\\]]"


def sentences(screen: Screen, **changes: Any) -> str:
    base = {
        "model": "org/base", "method": {"name": "lora"},
        "data": {"dataset": "/a.jsonl", "eval_fraction": 0.2, "max_length": 2048},
        "train": {"batch_size": 2, "accumulation": 4, "epochs": 3, "warmup": 0.1},
    }  # fmt: skip
    merged = {
        key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value
        for key, value in base.items()
    }
    form.load(RunSpec.from_json(merged | {"start_from": changes.get("start_from", "")}))
    return "\n".join(text for _, text in new_run_view.summary()).replace("\\", "")


def test_the_form_says_what_will_happen(screen: Screen) -> None:
    text = sentences(screen)
    assert "on /a.jsonl, 20% held out to measure it" in text
    assert "for 3 passes over the data, 8 rows a step, up to 2,048 tokens a row" in text
    assert "(the method's own), cosine, warm-up 10%" in text and "beginning with" not in text
    text = sentences(
        screen, data={"eval_fraction": 0.0}, start_from="run:x",
        train={"max_steps": 1200, "max_tokens": 50_000, "learning_rate": 3e-4},
    )  # fmt: skip
    assert "on all of /a.jsonl, nothing held out" in text
    assert "for 1,200 steps or 50,000 tokens, 8 rows a step" in text
    assert "learning rate 0.0003, cosine" in text and "beginning with the result of run:x" in text


def test_all_problems_are_counted_and_named(screen: Screen) -> None:
    new_run_view.show_problems()
    assert screen.calls == []
    screen.session_state["new.problems"] = {"name": "is long."}
    new_run_view.show_problems()
    screen.session_state["new.problems"] = {f"train.f{n}": "is bad." for n in range(200)}
    new_run_view.show_problems()
    single, many = screen.texts("error")
    assert single == "Nothing was started: 1 problem.\n\n- **name** is long."
    assert many.startswith("Nothing was started: 200 problems.")
    most = new_run_view.MOST_PROBLEMS
    assert many.count("is bad.") == most and many.endswith(f"- and {200 - most} more")


def test_a_plan_is_shown_for_the_form_that_was_checked_and_no_other(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_run_view.form, "value", lambda: {"a": 1})
    plan = {
        "for": {"a": 1},
        "estimate": {
            "trainable": 2e6, "parameters": 1e9, "peak_bytes": 7e9, "peak_phase": "backward",
            "source": "shadow", "disk": {"artifact": 1e9, "total": 5e9},
        },
        "facts": {
            "warnings": ["Odd [rows]."], "examples": 1200, "tokens_per_row": 90.4,
            "loss_tokens_per_row": 30.2,
        },
    }  # fmt: skip
    screen.session_state["new.plan"] = plan
    new_run_view.show_plan()
    (text,) = screen.texts("markdown")
    for words in (
        "about **7.00 GB** at the peak (backward; traced step)",
        "trains 2.0 M of 1.0 B parameters",
        "up to 5.00 GB of disk",
        "1,200 examples, about 90 tokens each, 30 learned",
    ):
        assert words in text, text
    assert screen.texts("warning") == ["Odd [rows]."]
    screen.session_state["new.plan"] = plan | {"for": {"a": 2}}
    new_run_view.show_plan()
    assert len(screen.texts("success")) == 1, "the form has changed since"
