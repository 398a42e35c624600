"""The Chat page: which models stand side by side, on which terms, and what each answer proves."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from lab.atomic_files import write_json
from lab.chat import client, conversations, examples
from lab.chat import models as chat_models
from lab.chat.answers import AnswerReceipt
from lab.chat.conversations import Answer, Chat, Turn
from lab.data import catalog
from lab.errors import LabError
from lab.hub.progress import DownloadForecast
from lab.paths import RunDir
from lab.ui import (
    adapter_field,
    answer_details,
    chat_history,
    chat_panes,
    chat_settings,
    chat_turns,
    chat_view,
    vote_view,
)
from tests.ui.screen import Screen
from tests.ui.test_panels import make_run


class ChatScreen(Screen):
    bottom = property(lambda self: self)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = ChatScreen()
    for module in (chat_view, chat_panes, chat_settings, chat_turns, chat_history, answer_details):
        monkeypatch.setattr(module, "st", screen)
    screen.columns = lambda count: [screen] * count  # type: ignore[attr-defined]
    return screen


def result(number: int, name: str, model: str = "org/base", **data: Any) -> RunDir:
    run = make_run(number, name, result={"state": "done"})
    spec = {"v": 1, "name": name, "model": model, "method": {"name": "lora"}, "data": data}
    write_json(run.spec, spec)
    run.artifact.mkdir()
    return run


def chat_of(answers: dict[str, Answer], question: str = "Who are you?") -> Chat:
    chat = conversations.create(list(answers))
    with conversations.change(chat.id) as kept:
        kept.turns.append(Turn(question, answers, {"system_prompt": "Be brief."}))
    return conversations.read(chat.id)


def test_bases_and_results_can_be_chosen(lab_home: Path) -> None:
    old, new = result(1, "old"), result(2, "")
    make_run(3, "without a result")
    titles = chat_models.available()
    assert titles[f"run:{old.id}"] == "old (k3f9)" and titles[f"run:{new.id}"] == "lora (k3f9)"
    assert titles["base:org/base"] == "base"
    assert not [title for title in titles.values() if "without" in title]
    names = list(titles)
    assert names.index(f"run:{new.id}") < names.index(f"run:{old.id}"), "the newest first"


def test_the_first_panes_are_the_base_and_the_newest_results_made_from_it(screen: Screen) -> None:
    runs = [result(number, f"run {number}") for number in (1, 2, 3)]
    result(0, "of another base", model="org/other")
    titles = chat_models.available()
    first = ["base:org/base", f"run:{runs[2].id}", f"run:{runs[1].id}"]
    assert chat_panes.chosen(titles, None) == first
    assert screen.query_params["models"] == ",".join(first), "The address opens the same models."
    screen.query_params["run"] = runs[0].id
    assert chat_panes.chosen(titles, None) == ["base:org/base", f"run:{runs[0].id}"]
    screen.query_params["models"] = f"run:{runs[1].id},run:gone"
    assert chat_panes.chosen(titles, None) == [f"run:{runs[1].id}"], "what is there of an address"
    screen.session_state["chat.models"] = []
    assert chat_panes.chosen(titles, None) == first
    screen.query_params["models"] = ",".join(titles)
    assert len(titles) > 4
    assert chat_panes.chosen(titles, None) == list(titles)[:4], "a chat takes four at most"


def test_a_checkpoint_of_a_run_without_a_result_is_linked_and_chosen(screen: Screen) -> None:
    """The base of the run comes from its spec: no result has brought it into the list."""
    stopped = make_run(1, "stopped", result={"state": "cancelled"})
    spec = {"v": 1, "name": "stopped", "model": "org/mine", "method": {"name": "lora"}, "data": {}}
    write_json(stopped.spec, spec)
    for step in (4, 8):
        (stopped.checkpoints / f"step-{step}").mkdir(parents=True)
    names = ["base:org/mine", f"run:{stopped.id}@4"]
    screen.query_params["models"] = ",".join([*names, f"run:{stopped.id}", f"run:{stopped.id}@5"])
    titles = chat_models.available()
    assert chat_panes.chosen(titles, None) == names, "The others are not there."
    model = f"run:{stopped.id}"
    screen.answers = {f"chat.model.1.{names[1]}": model, f"chat.step.1.{model}": 4}
    chat_panes._choose(1, names, titles)
    (steps,) = [
        args for kind, args, _ in screen.calls if kind == "selectbox" and args[0] == "Weights"
    ]
    assert steps[1] == [4, 8], "A result is no choice."
    chat = chat_of({names[1]: Answer(text="x", finish="stop")})
    screen.session_state.clear()
    screen.query_params.clear()
    assert chat_panes.chosen(titles, chat) == names[1:], "Its conversation opens as well."


def test_the_first_panes_are_of_one_base(screen: Screen) -> None:
    first, _, third = (
        result(number, f"run {number}", model=model)
        for number, model in ((1, "org/b"), (2, "org/a"), (3, "org/b"))
    )
    names = ["base:org/b", f"run:{third.id}", f"run:{first.id}"]
    assert chat_panes.chosen(chat_models.available(), None) == names


def test_a_new_conversation_is_none_of_the_address_or_the_session(screen: Screen) -> None:
    chat = chat_of({"base:org/a": Answer(text="x", finish="stop")})
    chat_history.open_chat(chat.id)
    assert screen.query_params["c"] == chat.id
    screen.query_params.clear()  # another page had the address
    assert chat_history.current() == chat and screen.query_params["c"] == chat.id
    chat_history.close()
    assert chat_history.current() is None and "c" not in screen.query_params


def test_only_the_last_answer_can_be_given_again(screen: Screen) -> None:
    name = "base:org/a"
    chat = chat_of({name: Answer(text="x", finish="stop")})
    chat.turns.append(Turn("And now?", {name: Answer(text="y", finish="stop")}))
    for index, keys in ((0, ["more"]), (1, ["again", "more"])):
        screen.calls.clear()
        chat_turns._answer(chat, index, name)
        assert [named["key"] for named in screen.named("button")] == [
            f"chat.{key}.{index}.{name}" for key in keys
        ], "what follows an earlier answer rests on it"


def test_reset_forgets_every_setting(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "health", lambda: None)
    chat_settings.settings(["base:x"], None)
    defaults = dict(screen.session_state)
    stored = {"seed": 7, "temperature": 0.5, "max_tokens": 400, "top_p": 0.9, "top_k": 5,
              "repetition_penalty": 1.1, "stop": ["END"], "system_prompt": "Be brief."}  # fmt: skip
    chat = Chat("c1", turns=[Turn("Hi", {}, stored)])
    chat_settings.settings(["base:x"], chat)
    screen.pressed = ("chat.reset",)
    chat_settings.settings(["base:x"], chat)
    screen.pressed = ()
    chat_settings.settings(["base:x"], chat)
    del screen.session_state["chat.settings_of"]
    assert screen.session_state == defaults


def test_an_adapter_brings_its_base_and_what_is_still_to_be_downloaded_of_both(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = SimpleNamespace(source="a", base="org/base", kind="LoraConfig", rank=8)
    downloads = [DownloadForecast(bytes=20_000_000), DownloadForecast(bytes=3_000_000_000)]
    monkeypatch.setattr(adapter_field.adapters, "find", lambda name: adapter)
    monkeypatch.setattr(adapter_field.hub, "adapter_download", lambda source: downloads[0])
    monkeypatch.setattr(adapter_field.catalog, "resolve", lambda name: name)
    monkeypatch.setattr(adapter_field.hub, "download_size", lambda source: downloads[1])
    monkeypatch.setattr(adapter_field.model_list, "is_cached", lambda name: name == "org/here")
    assert not adapter_field.is_base("base:org/base")
    job = adapter_field.AdapterJob("adapter:org/mine")
    job.ask()
    assert job.bytes_to_come == 3_020_000_000 and "3.02 GB to download" in adapter_field.facts(job)
    assert adapter_field.is_base("base:org/base"), "that of an adapter which was looked up"
    assert adapter_field.is_base("base:org/here#c0ffee")
    assert not adapter_field.is_base("base:org/elsewhere") and not adapter_field.is_base("org/here")
    monkeypatch.setattr(adapter_field, "st", screen)
    monkeypatch.setattr(adapter_field, "fragment", lambda run_every: lambda draw: draw)
    job.is_complete = True
    screen.pressed = ("chat.adapter.add",)
    added: list[list[str]] = []
    for names in ([], ["base:org/base"]):
        screen.session_state["chat.adapter.name"] = job.name
        adapter_field._outcome(job, names, added.append)
    assert added == [["base:org/base", "adapter:org/mine"], ["adapter:org/mine"]]


def test_an_opened_conversation_brings_its_models(screen: Screen) -> None:
    runs = [result(number, f"run {number}") for number in (1, 2)]
    names = [f"run:{runs[0].id}", "base:org/base"]
    chat = chat_of({name: Answer(text="x", finish="stop") for name in names})
    assert chat_panes.chosen(chat_models.available(), chat) == names


def test_prompts_that_differ_are_said_under_the_answers(screen: Screen) -> None:
    def answer(question: str, template: str) -> Answer:
        receipt = {"question_hash": question, "template_hash": template}
        return Answer(text="x", finish="stop", receipt=receipt)

    alike = chat_of({"base:org/a": answer("1", "t"), "base:org/b": answer("1", "t")})
    chat_turns._turn(alike, 0)
    assert not [text for text in screen.texts("caption") if "same prompt" in text]
    apart = chat_of({"base:org/a": answer("1", "t"), "base:org/*b*": answer("2", "u")})
    chat_turns._turn(apart, 0)
    (told,) = [text for text in screen.texts("caption") if "same prompt" in text]
    assert "their chat templates differ: a | *b*." in told
    dated = chat_of({"base:org/a": answer("1", "t"), "base:org/b": answer("2", "t")})
    chat_turns._turn(dated, 0)
    assert "other arguments, or another date: a | b." in screen.texts("caption")[-1]


def test_a_long_question_is_shown_by_its_beginning(screen: Screen) -> None:
    long = "<b>" + "a" * 90_000 + "z"
    chat = chat_of({"base:org/a": Answer(text="x", finish="stop")}, question=long)
    chat_turns._turn(chat, 0)
    begin = next(text for text in screen.texts("markdown") if text.startswith("<b>"))
    assert begin == long[: chat_turns.LONG_QUESTION] + " …"
    assert screen.texts("expander") == ["All 90,004 characters"]
    assert screen.texts("code") == [long], "The whole is there."


def test_a_head_names_method_and_colour(lab_home: Path) -> None:
    run = result(1, "*wren*")
    pane = chat_panes.pane(f"run:{run.id}@8")
    assert re.fullmatch(r":\w+\[●\] \*\*\\\*wren\\\*\*\* · LoRA, step 8", pane.label)
    gone = chat_panes.pane("run:20260101-000000-lora-zzzz")
    assert gone.kind == "deleted", "Its answers are still read."


def test_a_proof_is_marked_by_what_it_has_shown() -> None:
    whole = {"base_difference": 0.0, "tensors": 8, "tensors_loaded": 8, "effect": 1.5}

    def lines(**changes: Any) -> list[str]:
        return chat_panes.proof_lines(AnswerReceipt.from_json({"proof": whole | changes}))

    assert lines() == [
        ":material/check: The base is the base: largest logit difference 0",
        ":material/check: The trained weights are in the model: 8 of 8 tensors; logits differ "
        "from the base's by up to 1.5",
    ]
    assert lines(base_difference=0.25)[0].startswith(":material/warning: The base is the base")
    assert lines(tensors_loaded=7)[1].startswith(":material/warning: ")
    assert lines(effect=0.0)[1].startswith(":material/warning: "), "the weights change nothing"
    assert chat_panes.proof_lines(AnswerReceipt()) == []


def test_the_head_says_what_of_context_and_prompt_was_used(screen: Screen) -> None:
    answer = Answer(
        text="x", finish="stop", tokens=20, prompt_tokens=1100, kept_tokens=1000, context=2240,
        receipt={"prompt": "x"},
    )  # fmt: skip
    chat_panes._facts("base:org/a", chat_of({"base:org/a": answer}))
    assert screen.texts("caption") == [
        "1,120 of 2,240 tokens of context",
        "New: 100 of 1,100 prompt tokens; the others come from the prompt cache",
    ]
    assert [args for kind, args, _ in screen.calls if kind == "progress"] == [(0.5,)]


def test_the_system_prompt_is_that_of_the_first_result(screen: Screen) -> None:
    kind, odd = result(1, "a", system_prompt="Be kind."), result(2, "b", system_prompt="Be odd.")
    names = ["base:x", f"run:{kind.id}@3", f"run:{odd.id}"]
    screen.answers = {"chat.system": "Be kind.", "chat.seed": 7, "chat.temperature": 0.5}
    screen.answers |= {"chat.stop_strings": "END|| \n|You:", "chat.top_p": 0.9, "chat.top_k": 5}
    screen.answers |= {"chat.repetition_penalty": 1.1, "chat.max_tokens": 33}
    values = chat_settings.settings(names, None)
    assert values == {
        "system_prompt": "Be kind.", "seed": 7, "temperature": 0.5, "max_tokens": 33, "top_p": 0.9,
        "top_k": 5, "repetition_penalty": 1.1, "stop": ["END", "You:"],
    }  # fmt: skip
    line = chat_settings.summary(values).replace("\\", "")
    assert line == (
        "Same for all: temperature 0.5 · top-p 0.9 · top-k 5 · seed 7 · repetition penalty 1.1 · "
        "33 new tokens · stop at 'END', 'You:' · system prompt “Be kind.”"
    )
    assert screen.session_state["chat.system"] == "Be kind."
    screen.session_state["chat.system"] = "My own."
    chat_settings.settings(names, None)
    assert screen.session_state["chat.system"] == "My own.", "what a person wrote stays"
    chat_settings.settings(names[2:], None)
    assert screen.session_state["chat.system"] == "Be odd.", "another result, another prompt"


def test_a_conversation_continues_with_the_settings_of_its_last_turn(screen: Screen) -> None:
    """After a reload the session knows nothing; what a person then changes stays."""
    stored = {
        "system_prompt": "Be brief.", "seed": 7, "temperature": 0.5, "max_tokens": 400,
        "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1, "stop": ["END", "You:"],
    }  # fmt: skip
    chat = Chat("c1", turns=[Turn("Hi", settings=dict.fromkeys(stored)), Turn("And?", {}, stored)])
    chat_settings.settings(["base:x"], chat)
    state = screen.session_state
    for name in stored.keys() - {"stop", "system_prompt"}:
        assert state[f"chat.{name}"] == stored[name], name
    assert (state["chat.stop_strings"], state["chat.system"]) == ("END|You:", "Be brief.")
    state["chat.max_tokens"] = 8
    chat_settings.settings(["base:x"], chat)
    assert state["chat.max_tokens"] == 8 and state["chat.system"] == "Be brief."
    chat_settings.settings(["base:x"], Chat("c2", turns=[Turn("Hi", {}, stored)]))
    assert state["chat.max_tokens"] == 400, "another conversation has its own"


def test_what_the_api_allows_lies_within_the_fields(screen: Screen) -> None:
    """Streamlit raises where a field begins with a value outside its own bounds."""
    bounds = chat_settings.FIELDS
    stored = {
        name: bounds[name].metadata.get("min", bounds[name].metadata.get("above", 0) + 1e-3)
        for name in ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed")
    }
    chat = Chat("c1", turns=[Turn("Hi", {}, stored)])
    chat_settings.settings(["base:x"], chat)
    drawn = [(args, named["key"]) for kind, args, named in screen.calls if kind == "number_input"]
    assert len(drawn) == len(stored)
    for (_, low, high), key in drawn:
        value = screen.session_state[key]
        assert value == stored[key.removeprefix("chat.")] and low <= value <= high, key


def test_damaged_settings_of_a_conversation_are_the_defaults(screen: Screen) -> None:
    damaged = {
        "seed": -1, "temperature": float("nan"), "max_tokens": 0, "top_p": 2.0, "top_k": [],
        "repetition_penalty": "x", "stop": 5, "system_prompt": {},
    }  # fmt: skip
    for stored in (damaged, {}):
        screen.session_state.clear()
        chat_settings.settings(["base:x"], Chat("c1", turns=[Turn("Hi", {}, stored)]))
        for name, default in chat_settings.DEFAULTS.items():
            key = "chat.stop_strings" if name == "stop" else f"chat.{name}"
            assert screen.session_state[key] == default, name
        assert screen.session_state["chat.system"] == ""


@pytest.mark.parametrize(
    ("answer", "foot"),
    [
        (Answer(), "waiting …"),
        (Answer(phase="answering", tokens=5, seconds=2.5, seconds_to_first_token=0.5),
         "answering · 5 tokens · 2/s"),
        (Answer(tokens=21, seconds=2.5, seconds_to_first_token=0.5, finish="stop"),
         "21 tokens · 10/s · first after 0.5 s"),
        (Answer(tokens=3, seconds=1.5, seconds_to_first_token=0.5, finish="stop"),
         "3 tokens · 2/s · first after 0.5 s"),
        (Answer(tokens=1, seconds=0.5, seconds_to_first_token=0.5, finish="length"),
         "1 token · first after 0.5 s · reached max new tokens"),
        (Answer(finish="context"), "reached the end of the context"),
        (Answer(finish="stopped"), "stopped"),
        (Answer(finish="interrupted"), "interrupted: the chat process ended"),
        (Answer(finish="failed"), "failed"),
    ],
)  # fmt: skip
def test_the_foot_says_what_the_model_does_or_did(answer: Answer, foot: str) -> None:
    assert chat_turns.foot(answer).replace("\\", "") == foot


def test_words_that_differ_are_marked() -> None:
    marked = chat_turns.marked("I am a small model.", "I am Wren, a *small* model.")
    assert marked == ("I am :primary-background[Wren,] a :primary-background[\\*small\\*] model\\.")
    assert chat_turns.marked("same", "same") == "same"


def test_thoughts_are_folded_and_a_failed_proof_is_told(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = {"problems": ["The base is not the base."]}
    answer = Answer(
        text="<think>Hmm *deep*</think>\nI am **Wren**.", finish="stop", tokens=3,
        receipt={"proof": proof, "prompt": "x"},
    )  # fmt: skip
    failed = Answer(finish="failed", error="Out of <memory>.", hint="Free some.")
    chat = chat_of({"base:org/a": answer, "base:org/b": failed})
    chat_turns.turns(chat)
    texts = screen.texts("markdown")
    assert "Hmm *deep*  " in texts and "I am **Wren**.  " in texts
    assert any("The base is not the base." in text and ":red[" in text for text in texts)
    assert any("Out of <memory>." in text for text in texts)
    assert [named["key"] for named in screen.named("button")] == [
        *(f"chat.{what}.0.{name}" for name in chat.models for what in ("again", "more")),
        "chat.all_again.0",
    ]


def test_all_answers_of_the_last_question_are_made_again(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Any] = []
    monkeypatch.setattr(client, "answer_again", lambda *arguments: requests.append(arguments))
    chat = chat_of({name: Answer(finish="stop") for name in ("base:org/a", "base:org/b")})
    screen.pressed = ("chat.all_again.0",)
    chat_turns._turn(chat, 0)
    assert requests == [(chat.id,)], "all of them"
    chat.turns.append(Turn("And now?", {"base:org/a": Answer(finish="stop")}))
    chat_turns._turn(chat, 0)
    chat_turns._turn(chat, 1)
    assert len(requests) == 1, "neither of an earlier question, nor where there is but one model"


def test_each_running_answer_can_be_stopped(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[Any] = []
    monkeypatch.setattr(client, "stop", lambda chat_id, models=None: stopped.append(models))
    chat = chat_of({"base:org/a": Answer(phase="answering"), "base:org/b": Answer(finish="stop")})
    screen.pressed = ("chat.stop.0.base:org/a",)
    chat_turns._answer(chat, 0, "base:org/a")
    assert stopped == [["base:org/a"]]
    chat_turns._answer(chat, 0, "base:org/b")
    assert len(stopped) == 1, "An answer that is over has no stop."


def test_a_message_written_meanwhile_waits_and_can_be_dropped(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(chat_view, "ask", lambda *args: asked.append(args[-1]))
    busy = chat_of({"base:org/a": Answer()})
    screen.answers = {"chat.prompt": "And now?"}
    chat_view.message_field(busy, ["base:org/a"], {}, None)
    assert asked == [] and any("next: And now?" in text for text in screen.texts("markdown"))
    screen.calls.clear()
    screen.session_state.clear()  # the page is loaded anew, or in another browser
    screen.answers = {"chat.prompt": None}
    busy = conversations.read(busy.id)
    chat_view.message_field(busy, ["base:org/a"], {}, None)
    assert asked == [] and any("next: And now?" in text for text in screen.texts("markdown"))
    with conversations.change(busy.id) as chat:
        chat.turns[0].answers["base:org/a"].finish = "stop"
    over = conversations.read(busy.id)
    chat_view.message_field(over, ["base:org/a"], {}, None)
    assert asked == ["And now?"]
    chat_view.message_field(conversations.read(over.id), ["base:org/a"], {}, None)
    assert asked == ["And now?"], "It is sent once."
    conversations.keep_next(over.id, "Or not")
    busy = conversations.read(over.id)
    busy.turns[0].answers["base:org/a"].finish = ""
    screen.pressed = ("chat.drop",)
    monkeypatch.setattr("lab.ui.markdown_safety.st", screen)
    chat_view.message_field(busy, ["base:org/a"], {}, None)
    assert conversations.read(over.id).next_message == ""


def test_a_question_that_is_refused_is_not_lost(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise LabError("The question is too long.")

    monkeypatch.setattr(client, "ensure", dict)
    monkeypatch.setattr(client, "ask", refuse)
    told: list[LabError] = []
    monkeypatch.setattr(chat_view, "tell", told.append)
    chat_view.ask(None, ["base:org/a"], {}, "A long question")
    assert told[0].message == "The question is too long."
    assert "A long question" in screen.texts("code")


def test_tokens_are_escaped_and_tinted_by_surprise() -> None:
    answer = Answer(pieces=["<b>", " sure", "\n"], log_probabilities=[-6.0, -0.01, -1.0])
    text = answer_details.token_html(answer, answer.log_probabilities)
    assert "<b>" not in text and "&lt;b&gt;" in text
    assert re.findall(r'title="([^"]+)"', text) == ["0.2%", "99.0%", "36.8%"]
    assert re.findall(r"#ee8444 (\d+)%", text)[:3] == ["66", "0", "22"]


def test_the_model_that_gives_an_answer_most_comes_first(lab_home: Path) -> None:
    scores = {"base:org/writer": [-2.0, -2.0], "base:org/*other*": [-0.5, -0.5]}
    other, writer = answer_details.score_rows(scores, "base:org/writer")
    assert "\\*other\\*" in other["Under"] and writer["Under"].endswith("** (wrote it)")
    assert (other["Log-probability"], writer["Log-probability"]) == ("-1.00", "-4.00")
    assert (other["Perplexity"], writer["Perplexity"]) == ("1.65", "7.39"), "of each token"


def test_a_branch_has_the_turns_up_to_an_answer_or_those_before_a_question(screen: Screen) -> None:
    chat = chat_of({"base:org/a": Answer(text="x", finish="stop")}, "First?")
    with conversations.change(chat.id) as stored:
        stored.turns += [Turn(text, chat.turns[0].answers) for text in ("Second?", "Third?")]
    chat = conversations.read(chat.id)

    def branch(pressed: str) -> list[str]:
        screen.pressed = (f"details.{pressed}.1.base:org/a",)
        answer_details._go_on(chat, 1, "base:org/a")
        new = conversations.read(screen.session_state["chat.open"])
        return [turn.question for turn in new.turns]

    assert branch("branch") == ["First?", "Second?"] and "chat.next" not in screen.session_state
    screen.answers = {"details.edit.1.base:org/a": "Or so?"}
    assert branch("ask") == ["First?"] and screen.session_state["chat.next"] == "Or so?"


def test_what_can_be_tried_comes_from_the_set_of_the_result(screen: Screen) -> None:
    cards = {dataset.id: dataset.card for dataset in catalog.built_in()}
    name, card = next((n, c) for n, c in reversed(cards.items()) if c.get("try"))
    run = result(1, "a", dataset=name)
    screen.pressed = (f"chat.try.{card['try'][0]}",)
    assert chat_view.suggestions(["base:x", f"run:{run.id}@4"]) == card["try"][0]


def test_a_kept_answer_is_a_row_that_can_be_trained_on(lab_home: Path) -> None:
    chat = chat_of({"base:org/a": Answer(text="I am SmolLM.", finish="stop")})
    assert examples.add_chat("mine", chat, 0, "base:org/a", "I am Wren.") == 1
    assert examples.add_chat("mine.jsonl", chat, 0, "base:org/a", "I am a wren.") == 2
    rows = [json.loads(line) for line in catalog.resolve("upload:mine.jsonl").path.open()]
    assert rows[0] == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "I am Wren."},
        ]
    }
    assert rows[1]["messages"][-1]["content"] == "I am a wren."
    for name in ("../evil", "a/b", "", ".hidden"):
        with pytest.raises(LabError, match="cannot be the name"):
            examples.add_chat(name, chat, 0, "base:org/a", "x")
    (catalog.uploads_folder() / "link.jsonl").symlink_to(lab_home / "elsewhere.jsonl")
    with pytest.raises(LabError, match="is a link, which is not written to"):
        examples.add_chat("link", chat, 0, "base:org/a", "x")
    with pytest.raises(LabError, match="is empty"):
        examples.add_chat("mine", chat, 0, "base:org/a", "  ")


def test_two_answers_that_are_kept_at_once_are_two_rows(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = examples.write_atomic

    def slowly(path: Path, text: str) -> None:
        time.sleep(0.1)
        write(path, text)

    monkeypatch.setattr(examples, "write_atomic", slowly)
    with ThreadPoolExecutor(3) as pages:
        rows = sorted(pages.map(lambda number: examples.append("mine", {"n": number}), range(3)))
    assert rows == [1, 2, 3]


def test_a_receipt_is_of_its_own_turn(lab_home: Path) -> None:
    name = "base:org/a"
    chat = chat_of({name: Answer(text="I am Wren.", finish="stop", token_ids=[1])})
    later = Answer(text="Still Wren.", finish="stop", token_ids=[2])
    chat.turns.append(Turn("And now?", {name: later}, {"seed": 7}))
    first, second = (json.loads(examples.receipt_file(chat, turn, name)) for turn in (0, 1))
    assert (first["settings"], first["token_ids"]) == ({"system_prompt": "Be brief."}, [1])
    assert (second["settings"], second["token_ids"]) == ({"seed": 7}, [2])
    assert [len(record["messages"]) for record in (first, second)] == [1, 3]


def test_a_search_finds_words_of_questions_and_answers() -> None:
    chat = Chat("x", turns=[Turn("Who are you?", {"base:a": Answer(text="I am Wren.")})])
    assert chat_history.contains(chat, "wren who") and chat_history.contains(chat, "")
    assert not chat_history.contains(chat, "wren robin")


@pytest.mark.parametrize(
    ("sizes", "says", "parts"),
    [
        (
            {"base:org/a": 1_000_000_000, "base:org/b": 500_000_000},
            "2 models in memory, 1.50 GB. They are unloaded in 1 min 30 s.",
            ["1.00 GB", "500.00 MB"],
        ),
        (
            {"base:org/a": 500_000_000},
            "1 model in memory, 500.00 MB. It is unloaded in 1 min 30 s.",
            ["500.00 MB"],
        ),
    ],
)
def test_what_is_in_memory_is_told_model_by_model_and_together(
    sizes: dict[str, int],
    says: str,
    parts: list[str],
    screen: Screen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    health = client.ChatHealth(loaded=tuple(sizes), bytes=sizes, ends_in_s=90.0)
    monkeypatch.setattr(client, "health", lambda: health)
    monkeypatch.setattr(chat_settings.chat_memory_panel, "free_button", lambda key: None)
    chat_settings.show_loaded()
    total, *each = screen.texts("caption")
    assert total == says
    assert [text.rpartition(" · ")[2] for text in each] == parts


def test_heads_and_answers_are_of_one_look(
    open_page: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that ends while the page is drawn has its proof in the head too."""
    name = "base:org/a"
    chat = conversations.create([name], turns=[Turn("Who are you?", {name: Answer()})])
    ended = Turn("Who are you?", {name: Answer(text="I am Wren.", finish="stop")})
    monkeypatch.setattr(chat_view, "seen", lambda chat: Chat(chat.id, chat.models, turns=[ended]))
    drawn = []
    for module, part in ((chat_panes, "heads"), (chat_view, "terms"), (chat_turns, "turns")):
        monkeypatch.setattr(module, part, lambda *args: drawn.append(args[-1].turns[-1].is_over))
    open_page("chat", c=chat.id)
    assert drawn == [True, True, True]


@pytest.mark.parametrize("mode", ["open", "blind"])
def test_what_is_in_memory_is_looked_up_behind_the_answers(
    mode: str, open_page: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short answer is over before its page is drawn: its model was loaded meanwhile."""
    loaded = ["base:org/a"]
    for module, name in ((chat_turns, "turns"), (vote_view, "show")):
        monkeypatch.setattr(module, name, lambda *_: loaded.append("base:org/b"))
    monkeypatch.setattr(client, "health", lambda: client.ChatHealth(loaded=tuple(loaded)))
    answer = Answer(text="I am Wren.", finish="stop")
    turn = Turn("Who are you?", {"base:org/a": answer})
    chat = conversations.create(["base:org/a"], turns=[turn])
    session = {"chat.mode": vote_view.BLIND} if mode == "blind" else {}
    at = open_page("chat", session, c=chat.id)
    texts = [caption.value for caption in at.caption]
    assert [text for text in texts if "in memory" in text] == ["2 models in memory."]


def test_a_link_to_the_chat_of_a_run_is_followed_each_time_and_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A browser that is slow says the old address once more; whoever comes back says it anew."""
    titles = {"base:x": "x", "run:a": "a", "run:b": "b"}
    page = SimpleNamespace(query_params={"run": "a"}, session_state={})
    monkeypatch.setattr(chat_panes, "st", page)
    monkeypatch.setattr(chat_panes, "_base_of", lambda name: "base:x")
    assert chat_panes.chosen(titles, None) == ["base:x", "run:a"]
    page.session_state["chat.models"] = ["run:b"]
    page.query_params = {"run": "a"}
    assert chat_panes.chosen(titles, None) == ["run:b"], "the same click"
    page.query_params = {}
    assert chat_panes.chosen(titles, None) == ["run:b"]
    page.query_params = {"run": "a"}
    assert chat_panes.chosen(titles, None) == ["base:x", "run:a"], "another click"
    assert "run" not in page.query_params
