"""The Chat page: which models stand side by side, on which terms, and what each answer proves."""

from __future__ import annotations

from typing import Any

import pytest

from lab.atomic_files import write_json
from lab.paths import RunDir
from lab.ui import chat_view
from tests.ui.screen import Screen
from tests.ui.test_panels import make_run


class Panes(Screen):
    """The models that are selected stand in the session."""

    def multiselect(self, label: str, options: list[str], key: str, **_: Any) -> Any:
        return self.session_state[key]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Panes:
    panes = Panes()
    monkeypatch.setattr(chat_view, "st", panes)
    return panes


def result(number: int, name: str, model: str = "org/base", **data: Any) -> RunDir:
    run = make_run(number, name, result={"state": "done"})
    spec = {"v": 1, "name": name, "model": model, "method": {"name": "lora"}, "data": data}
    write_json(run.spec, spec)
    run.artifact.mkdir()
    return run


def test_bases_and_results_can_be_chosen(screen: Panes) -> None:
    old, new = result(1, "old"), result(2, "")
    make_run(3, "without a result")
    titles = chat_view.choices()
    assert titles[f"run:{old.id}"] == "old (k3f9)" and titles[f"run:{new.id}"] == "lora (k3f9)"
    assert titles["base:org/base"] == "Base base"
    assert not [title for title in titles.values() if "without" in title]
    names = list(titles)
    assert names.index(f"run:{new.id}") < names.index(f"run:{old.id}"), "the newest first"


def test_the_first_panes_are_the_base_and_the_newest_results(screen: Panes) -> None:
    runs = [result(number, f"run {number}") for number in (1, 2, 3)]
    titles = chat_view.choices()
    chosen = chat_view.choose(titles)
    assert chosen == [next(iter(titles)), f"run:{runs[2].id}", f"run:{runs[1].id}"]
    screen.query_params["run"] = runs[0].id
    assert chat_view.choose(titles) == ["base:org/base", f"run:{runs[0].id}"], "with its own base"
    screen.session_state["chat.models"] = [f"run:{runs[1].id}", "run:gone"]
    assert chat_view.choose(titles) == [f"run:{runs[1].id}"], "what a person changed stays"
    screen.session_state["chat.models"] = []
    assert chat_view.choose(titles) == [] and "at least one model" in screen.texts("info")[0]


def test_the_system_prompt_is_that_of_the_first_result(screen: Panes) -> None:
    kind, odd = result(1, "a", system_prompt="Be kind."), result(2, "b", system_prompt="Be odd.")
    screen.answers = {
        "chat.system": "Be kind.", "chat.seed": 7, "chat.temperature": 0.5, "chat.tokens": 33,
    }  # fmt: skip
    screen.columns = lambda count: [screen, screen]  # type: ignore[attr-defined]
    chosen = ["base:x", f"run:{kind.id}", f"run:{odd.id}"]
    assert chat_view.settings(chosen) == {
        "system_prompt": "Be kind.", "seed": 7, "temperature": 0.5, "max_tokens": 33,
    }  # fmt: skip
    assert screen.session_state["chat.system"] == "Be kind."
    screen.session_state["chat.system"] = "My own."
    chat_view.settings(chosen)
    assert screen.session_state["chat.system"] == "My own.", "what a person wrote stays"
    chat_view.settings(chosen[2:])
    assert screen.session_state["chat.system"] == "Be odd.", "another result, another prompt"


@pytest.mark.parametrize(
    ("finish", "at_end", "ended"),
    [
        ("stop", False, "ended by itself"),
        ("stop", True, "ended by itself"),
        ("length", False, "cut at the longest answer"),
        ("length", True, "cut at the end of what the model reads"),
    ],
)
def test_an_answer_is_followed_by_its_terms(finish: str, at_end: bool, ended: str) -> None:
    event = {
        "token_ids": [1] * 30, "seconds": 2.0, "finish": finish, "is_at_context_end": at_end,
        "receipt": {
            "prompt_hash": "0123456789abcdef", "seed": 7, "dtype": "float32",
            "warning": "Another system prompt.",
        },
    }  # fmt: skip
    foot = chat_view._foot(event).replace("\\", "")
    assert foot == (
        f"30 tokens, 15/s, {ended}. Prompt 01234567, seed 7, float32. Another system prompt."
    )
    assert "\\_" in chat_view._foot(event | {"receipt": event["receipt"] | {"warning": "a_b_"}})


def test_what_can_be_tried_comes_from_the_set_of_the_result(screen: Panes) -> None:
    cards = {dataset.id: dataset.card for dataset in chat_view.datasets.built_in()}
    name, card = next((n, c) for n, c in reversed(cards.items()) if c.get("try"))
    run = result(1, "a", dataset=name)
    chat_view.suggestions(["base:x", f"run:{run.id}"])
    (pills,) = [args for kind, args, _ in screen.calls if kind == "pills"]
    assert pills[1] == card["try"]
    screen.session_state["chat.history"] = {"base:x": [{"role": "user", "content": "Hi"}]}
    assert chat_view.suggestions(["base:x"]) is None, "only while the chat is empty"
