"""The blind vote of the Chat page, from the form to the outcome, with models that a test plays."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from lab.chat import client, conversations
from lab.chat.conversations import Answer, Turn
from lab.compare import votes
from lab.ui import vote_outcome, vote_setup, vote_view
from tests.compare.test_votes import A, B, C, answered, session_with
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen
from tests.ui.test_chat_view import result


class Models:
    """Plays the chat process: answers at once, and remembers what was asked."""

    def __init__(self) -> None:
        self.questions: list[str] = []
        self.finish = "stop"

    def ask(self, chat_id: str, question: str, models: list[str], settings: dict[str, Any]) -> int:
        self.questions.append(question)
        with conversations.change(chat_id) as chat:
            answers = {
                name: Answer(
                    text="the same" if "same" in question else f"text {number} on {question}",
                    finish=self.finish, tokens=5 + number,
                )
                for number, name in enumerate(models)
            }  # fmt: skip
            chat.turns.append(Turn(question, answers, settings))
        return 0


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, lab_home: Path) -> Models:
    played = Models()
    monkeypatch.setattr(client, "ensure", dict)
    monkeypatch.setattr(client, "ask", played.ask)
    monkeypatch.setattr(client, "view", conversations.read)
    return played


@pytest.fixture
def names(models: Models) -> list[str]:
    return ["base:org/base", f"run:{result(1, 'wren').id}"]


def pressed(at: AppTest, key: str) -> AppTest:
    at.button(key=key).click().run()
    assert not at.exception, at.exception
    return at


def keys(at: AppTest) -> set[str]:
    return {button.key for button in at.button}


def session_at(at: AppTest) -> votes.VoteSession:
    return votes.read(at.session_state["vote.id"])


def test_typed_prompts_go_from_the_form_to_the_verdict(
    open_page: Page, models: Models, names: list[str]
) -> None:
    at = open_page("chat", {"chat.mode": vote_view.BLIND})
    at.number_input(key="vote.planned").set_value(2)
    pressed(at, "vote.start")
    assert session_at(at).models == names and session_at(at).planned == 2
    at.chat_input(key="vote.prompt").set_value("Who?").run()
    at.run()  # the answers are over at the first look
    text = words(at)
    assert "Answer A" in text and "Answer B" in text and "Vote 1 of 2" in text
    assert "wren" not in text and "text 0 on Who?" in text.replace("\\", "")
    assert "chat.pane.0" not in str(at.session_state), "No head names a model."
    assert at.chat_input(key="vote.prompt").disabled, "First the vote."
    at.toggle(key="vote.differences").set_value(True).run()
    assert words(at).count(":primary-background[") == 1, "Marked in answer B."
    first = session_at(at).prompts[0].order
    pressed(at, "vote.1")
    assert session_at(at).prompts[0].votes == {"me": first[0]}
    pressed(at, "vote.4")
    assert session_at(at).prompts[0].votes == {"me": first[1]}, "It is changed."
    at.chat_input(key="vote.prompt").set_value("The same?").run()
    at.run()
    assert "identical" in words(at) and "vote.1" not in keys(at)
    at.chat_input(key="vote.prompt").set_value("What?").run()
    at.run()
    assert "Vote 2 of 2 · 1 skipped" in words(at) and "vote.names" not in keys(at)
    pressed(at, "vote.2")
    pressed(at, "vote.names")
    text = words(at)
    assert "preferred in 1 of 1 decided vote" in text and "1 tie, 0 both bad, 1 identical" in text
    assert "wren" in text
    assert models.questions == ["Who?", "The same?", "What?"]


def test_a_set_asks_ahead_and_goes_on_after_a_reload(
    open_page: Page, models: Models, names: list[str]
) -> None:
    session = votes.create(
        names, planned=3, source="a set", prompts=["one", "the same", "two", "three", "four"],
    )  # fmt: skip
    at = open_page("chat", vote=session.id)
    at.run()
    at.run()
    assert models.questions == ["one", "the same"], "The next one is answered meanwhile."
    pressed(at, "vote.3")
    again = open_page("chat", vote=session.id)
    again.run()
    text = words(again)
    assert "text 0 on two" in text and "text 0 on one" not in text, "It goes on behind the vote."
    assert "Vote 2 of 3 · 1 skipped" in words(again)
    pressed(again, "vote.1")
    pressed(again, "vote.end")
    assert session_at(again).is_early
    assert "Ended before the planned 3." in words(again)


@pytest.mark.parametrize(
    ("planned", "there_are", "drawn", "votes_planned"),
    [(3, 500, 6, 3), (3, 2, 2, 2), (None, 500, 100, None), (300, 500, 400, 300)],
)
def test_a_set_has_prompts_to_spare_for_those_that_are_skipped(
    names: list[str], monkeypatch: pytest.MonkeyPatch,
    planned: int | None, there_are: int, drawn: int, votes_planned: int | None,
) -> None:  # fmt: skip
    def prompts(source: str, most: int, seed: int) -> list[str]:
        return [f"{source} {seed} {number}" for number in range(min(most, there_are))]

    screen = Screen()
    monkeypatch.setattr(vote_setup, "st", screen)
    monkeypatch.setattr(vote_setup.prompt_sets, "prompts", prompts)
    monkeypatch.setattr(votes, "MAX_PROMPTS", 400)
    vote_setup.begin(names, {}, {}, source="a set", planned=planned, seed=7, voter="me")
    session = votes.read(screen.session_state["vote.id"])
    assert len(session.prompts) == drawn and session.prompts[-1].prompt == f"a set 7 {drawn - 1}"
    assert session.planned == votes_planned, "no more than there are to vote on"


def test_the_address_of_a_vote_names_no_model(
    open_page: Page, models: Models, names: list[str]
) -> None:
    session = votes.create(names, planned=1, prompts=["one"])
    at = open_page("chat", vote=session.id, models=",".join(names))
    assert "models" not in at.query_params and "wren" not in words(at)


def test_a_set_of_identical_answers_ends_without_a_vote(
    open_page: Page, models: Models, names: list[str]
) -> None:
    session = votes.create(names, source="a set", prompts=["the same", "again the same"])
    at = open_page("chat", vote=session.id)
    for _ in range(3):
        at.run()
    assert "No prompt of the set is left" in words(at)
    pressed(at, "vote.names")
    text = words(at)
    assert "No preference shown: no vote was decided." in text and "2 identical" in text


def test_a_missing_answer_is_asked_for_again(
    open_page: Page, models: Models, names: list[str]
) -> None:
    session = votes.create(names, source="a set", prompts=["one", "two"])
    models.finish = "interrupted"
    at = open_page("chat", vote=session.id)
    at.run()
    at.run()
    assert "An answer is missing" in words(at)
    models.finish = "stop"
    pressed(at, "vote.again")
    at.run()
    assert "Answer A" in words(at) and session_at(at).prompts[0].skipped == ""


def test_a_prompt_is_asked_ahead_as_long_as_votes_are_to_come(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_ahead: list[int] = []
    monkeypatch.setattr(vote_view, "ask", lambda session, index: asked_ahead.append(index))
    session = session_with("one", "two", "three", planned=1, source="a set")
    session.take_answers(0, answered("x", "y"))
    vote_view._ask_ahead(session, 0)
    assert asked_ahead == [1], "the next one, and no more"
    session.vote(0, A)
    vote_view._ask_ahead(session, 0)
    assert asked_ahead == [1], "nobody votes on another one"


def test_an_identical_prompt_gives_its_place_to_the_next(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    monkeypatch.setattr(vote_view, "st", screen)
    session = session_with("one", "two", source="a set")
    session.take_answers(0, answered("x", "x"))
    screen.session_state[f"vote.at.{session.id}"] = 0
    assert vote_view.at_hand(session) == 1
    other = session_with("one", "two", source="a set")
    other.take_answers(0, answered("x", "", finish="failed"))
    screen.session_state[f"vote.at.{other.id}"] = 0
    assert other.prompts[0].skipped == votes.FAILED
    assert vote_view.at_hand(other) == 0, "it can be asked again"


def test_after_the_last_vote_a_vote_can_be_changed_and_none_given(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_with("one", "two", planned=1)
    for index in (0, 1):
        session.take_answers(index, answered("x", "y"))
    session.vote(0, A)
    for index, is_disabled in ((0, False), (1, True)):
        screen = Screen()
        monkeypatch.setattr(vote_view, "st", screen)
        vote_view._buttons(session, index)
        buttons = {named["key"]: named.get("disabled") for named in screen.named("button")}
        assert buttons.pop("vote.names", False) is None, "the names can be shown"
        assert buttons == dict.fromkeys((f"vote.{n}" for n in (1, 2, 3, 4)), is_disabled)


def test_a_vote_that_is_gone_is_told(open_page: Page, names: list[str]) -> None:
    at = open_page("chat", vote="20260101-000000-abcd")
    assert "There is no blind vote" in words(at).replace("\\", "")
    assert "vote.start" in keys(at)


def test_the_conversations_of_a_vote_are_in_no_history(open_page: Page, names: list[str]) -> None:
    conversations.create(names, vote="20260101-000000-abcd")
    at = open_page("chat")
    at.button(key="chat.open_history").click().run()
    assert "No conversations yet" in words(at), "Its models would tell who answers."


def test_three_models_have_a_button_each() -> None:
    assert [label for _, label in vote_view.choices([A, B, C])] == [
        "A is best", "B is best", "C is best", "Tie", "All bad",
    ]  # fmt: skip
    assert [vote for vote, _ in vote_view.choices([B, A])] == [B, votes.TIE, votes.BAD, A]


def test_the_state_of_a_vote_that_goes_on_tells_no_leader(lab_home: Path) -> None:
    session = session_with("one", "two", planned=2)
    for place in (0, 1):
        session.take_answers(place, answered("x", "y"))
    session.vote(0, B)
    assert vote_setup.state(session) == "1 of 2 votes, in progress"
    session.vote(1, B)
    session.end()
    assert vote_setup.state(session).replace("\\", "").startswith("No preference shown; about 4")


def test_the_csv_has_every_prompt_and_no_formula(lab_home: Path) -> None:
    session = session_with("=1+1", "two", "three")
    session.take_answers(0, answered("@x, 1", "  -I am Wren"))
    session.take_answers(1, answered("x", "x"))
    session.vote(0, votes.BAD)
    rows = list(csv.DictReader(io.StringIO(vote_outcome.as_csv(vote_outcome.table(session)))))
    assert [row["prompt"] for row in rows] == ["'=1+1", "two"]
    assert [row["preferred"] for row in rows] == ["both bad", "identical, skipped"]
    assert rows[0]["names itself"] == "wren lora"
    assert rows[0]["answer of SmolLM2-135M-Instruct"] == "'@x, 1"
    assert rows[0]["answer of wren lora"] == "'  -I am Wren", "spaces in front change nothing"
    assert rows[0]["tokens of wren lora"] == "3"
    assert vote_outcome.as_csv([]) == ""


def test_decided_votes_become_rows_of_a_dataset(
    open_page: Page, names: list[str], lab_home: Path
) -> None:
    session = votes.create(names, planned=2, prompts=["one", "two"])
    with votes.change(session.id) as changed:
        for place, texts in enumerate((("x", "y"), ("v", "w"))):
            changed.take_answers(place, answered(*texts, models=(names[0], names[1])))
            changed.vote(place, names[place])
        changed.end()
    at = open_page("chat", vote=session.id)
    pressed(at, "vote.add")
    assert "preferences.jsonl has 2 rows" in words(at).replace("\\", "")
    lines = (lab_home / "datasets" / "preferences.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": "one", "chosen": "x", "rejected": "y"},
        {"prompt": "two", "chosen": "w", "rejected": "v"},
    ]


def test_a_blind_vote_of_the_address_outlives_an_interrupted_run(
    open_page: Page, run_without_answer: Callable[[AppTest], AppTest], names: list[str]
) -> None:
    at = open_page("chat", vote="20260101-000000-aaaa")
    run_without_answer(at)
    (mode,) = [group for group in at.button_group if group.key == "chat.mode"]
    assert mode.proto.set_value and mode.value == vote_view.BLIND
