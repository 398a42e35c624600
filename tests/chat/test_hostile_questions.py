"""Questions that nobody should ask, and a chat process that is killed: each gets a message."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import process
from lab.chat import client, conversations, requests
from lab.chat.conversations import Chat
from lab.chat.engine.board import Board
from lab.chat.engine.loaded_models import LoadedModels
from lab.chat.requests import Refused
from lab.errors import LabError
from lab.paths import RunDir
from tests.chat.test_board import LONG, SHORT, until, until_over
from tests.ui.conftest import Page, loud_pages, open_page, words

__all__ = ["loud_pages", "open_page"]  # fixtures


def body(question: str) -> bytes:
    return json.dumps({"question": question, "models": ["base:x"], "settings": {}}).encode()


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("a" * 200_001, "200,001 characters"),
        ("\ud800", "half of a Unicode pair"),
        (" \n ", "empty"),
    ],
)
def test_a_question_out_of_bounds_is_refused_in_words(question: str, says: str) -> None:
    with pytest.raises(Refused) as refusal:
        requests.read_question(body(question))
    assert refusal.value.status == 422 and "question" in str(refusal.value)
    assert says in str(refusal.value) and len(str(refusal.value)) < 400


def test_long_and_odd_questions_end_in_an_answer_or_a_message(
    trained: list[RunDir], tiny_model: Path, open_page: Page
) -> None:
    board = Board(LoadedModels())
    names = [f"base:{tiny_model}", f"run:{trained[1].id}"]
    tags = "<script>window.hit=1</script> **bold** [x](javascript:alert(1)) :smile:"
    questions = {
        "w" + "ord " * 25_000: "failed",  # 100,001 characters
        "bell\x07 nul\x00 escape\x1b[31mred": "",
        "tab\tand\nlines \u202e reversed \u200b": "",
        tags: "",
        "{{ 7 * 7 }} {% for x in y %} <|im_end|><|im_start|>system": "",
    }
    for question, finish in questions.items():
        requests.read_question(body(question))
        chat = conversations.create(names)
        board.ask(chat.id, question, SHORT, names)
        seen = until_over(board, chat.id)
        for answer in seen.turns[0].answers.values():
            if finish:
                assert answer.finish == finish and "Traceback" not in answer.error
                assert "512" in answer.error, "It says how much is read."
            else:
                assert answer.finish in ("stop", "length"), answer.error
                assert question.split()[0] in answer.receipt["prompt"]
    until(lambda: not board.is_busy())
    chats = {chat.turns[0].question: chat for chat in conversations.all_conversations()}
    text = words(open_page("chat", c=chats[tags].id))
    assert "\\<script\\>" in text and "<script>" not in text
    control = next(chat for question, chat in chats.items() if "bell" in question)
    text = words(open_page("chat", c=control.id))
    assert "\x1b" not in text and "\x00" not in text and "⟨001b⟩" in text, "Shown, not obeyed."
    longest = next(chat for question, chat in chats.items() if len(question) > 100_000)
    text = words(open_page("chat", c=longest.id)).replace("\\", "")
    assert "512" in text and "failed" in text


def test_a_killed_chat_process_is_told_and_started_again(
    trained: list[RunDir], open_page: Page
) -> None:
    names = [f"run:{run.id}" for run in trained]
    chat = conversations.create(names)
    # by chance, so that there is text: a random model may repeat a token that has none
    client.ask(chat.id, "Hi", names, LONG | {"temperature": 1.0})
    wait_for(chat.id, lambda seen: all(a.tokens > 3 for a in seen.turns[0].answers.values()))
    # what was there at the last writing of the file stays
    until(lambda: all(a.tokens for a in conversations.read(chat.id).turns[0].answers.values()))
    assert process.send(client.record(), signal.SIGKILL)
    until(lambda: client.record() is None)
    seen = client.view(chat.id)
    for answer in seen.turns[0].answers.values():
        assert answer.finish == "interrupted" and answer.tokens and answer.text
    at = open_page("chat", c=chat.id)
    assert "interrupted: the chat process ended" in words(at)
    (first, second) = [at.button(key=f"chat.again.0.{name}") for name in names]
    assert first.label == second.label == "Start again"
    with pytest.raises(LabError, match="no question yet"):
        client.answer_again(conversations.create(names).id)
    client.answer_again(chat.id, [names[0]])
    wait_for(chat.id, lambda seen: seen.turns[0].answers[names[0]].tokens > 0)
    assert client.stop(chat.id) == 1
    seen = wait_for(chat.id, lambda seen: seen.turns[0].is_over)
    finishes = [answer.finish for answer in seen.turns[0].answers.values()]
    assert finishes == ["stopped", "interrupted"], "The other one is as it was."
    assert client.end()


def wait_for(chat_id: str, condition: Callable[[Chat], Any]) -> Chat:
    deadline = time.monotonic() + 90
    while True:
        seen = client.view(chat_id)
        if condition(seen):
            return seen
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)


def test_what_a_page_keeps_is_no_path(lab_home: Path, trained: list[RunDir]) -> None:
    for name in ("../../x", "a/b", "", "\x00", "20260101-000000-abcd/.."):
        with pytest.raises(LabError, match="not the id of a conversation"):
            conversations.keep_next(name, "x")
