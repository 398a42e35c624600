"""Conversations on the disk: whole or not at all, and only what belongs to them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from lab.chat import conversations
from lab.chat.conversations import Answer, Chat, Turn
from lab.errors import LabError

A, B = "base:org/a", "base:org/b"


def chat_with(*answers: Answer) -> Chat:
    chat = conversations.create([A])
    with conversations.change(chat.id) as kept:
        for number, answer in enumerate(answers):
            kept.turns.append(Turn(f"Question {number}", {A: answer}))
    return conversations.read(chat.id)


def test_what_is_written_is_read_again(lab_home: Path) -> None:
    answer = Answer(
        text="Hi", finish="stop", tokens=2, token_ids=[3, 4], log_probabilities=[-0.5, -1.0],
        pieces=["H", "i"], receipt={"seed": 1}, seconds=0.5, context=512,
    )  # fmt: skip
    chat = chat_with(answer)
    assert conversations.read(chat.id) == chat and chat.turns[0].answers == {A: answer}
    value = json.loads(conversations.path(chat.id).read_text())
    value["turns"][0]["answers"][A]["new key"] = 1
    assert Chat.from_json(value | {"another": 2}) == chat, "Keys of a later version are ignored."


@pytest.mark.parametrize("bad", ["../x", "", "20260101-000000-ABCD", "a" * 300, "x\n", 5, None])
def test_an_id_is_no_path(lab_home: Path, bad: object) -> None:
    for use in (conversations.read, conversations.delete, conversations.path):
        with pytest.raises(LabError, match="is not the id"):
            use(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"turns": 5}, {"turns": [{}]}, {"turns": [{"question": 5, "answers": {}}]},
        {"turns": [{"question": "x", "answers": {"base:a": {"finish": "odd"}}}]},
        {"turns": [{"question": "x", "answers": {"base:a": []}}]}, {"models": [5]}, {"id": "../x"},
    ],
)  # fmt: skip
def test_a_damaged_file_is_told_and_harms_no_other(lab_home: Path, change: dict) -> None:  # type: ignore[type-arg]
    good, bad = chat_with(Answer(finish="stop")), chat_with(Answer(finish="stop"))
    path = conversations.path(bad.id)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LabError, match="damaged"):
        conversations.read(bad.id)
    assert [chat.id for chat in conversations.all_conversations()] == [good.id]


def test_a_change_that_fails_changes_nothing(lab_home: Path) -> None:
    chat = chat_with(Answer(finish="stop"))
    with pytest.raises(ZeroDivisionError), conversations.change(chat.id) as kept:
        kept.title = "half"
        _ = 1 / 0
    assert conversations.read(chat.id) == chat


def test_changes_at_once_lose_nothing(lab_home: Path) -> None:
    chat = conversations.create([A])

    def add(number: int) -> None:
        with conversations.change(chat.id) as kept:
            kept.turns.append(Turn(str(number)))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    questions = {turn.question for turn in conversations.read(chat.id).turns}
    assert questions == {str(number) for number in range(12)}


def test_a_branch_keeps_the_old_conversation(lab_home: Path) -> None:
    chat = chat_with(Answer(text="1", finish="stop"), Answer(text="2", finish="stop"))
    branch = conversations.branch(chat.id, 1)
    assert branch.turns == chat.turns[:1] and branch.parent == chat.id
    assert conversations.read(chat.id) == chat
    with pytest.raises(LabError, match="2 turns"):
        conversations.branch(chat.id, 5)


@pytest.mark.parametrize(
    ("answer", "is_told"),
    [
        (Answer(text="yes", finish="stop"), True),
        (Answer(text="", finish="stop"), True),
        (Answer(text="", finish="length"), True),
        (Answer(text="", finish="context"), True),
        (Answer(text="half", finish="stopped"), True),
        (Answer(text="half", finish="interrupted"), True),
        (Answer(text="", finish="stopped"), False),
        (Answer(text="x", finish="failed"), False),
    ],
)
def test_a_question_without_an_answer_is_not_told_again(
    lab_home: Path, answer: Answer, is_told: bool
) -> None:
    chat = chat_with(answer, Answer())
    roles = [message["role"] for message in chat.messages(A, 1)]
    assert roles == (["user", "assistant", "user"] if is_told else ["user"])
    assert chat.messages(A, 1)[-1]["content"] == "Question 1"


def test_all_go_on_from_one_answer(lab_home: Path) -> None:
    chat = conversations.create([A, B])
    with conversations.change(chat.id) as kept:
        answers = {A: Answer(text="a", finish="stop"), B: Answer(text="b", finish="failed")}
        kept.turns += [Turn("Who?", answers), Turn("And?")]
    conversations.continue_from(chat.id, 0, A)
    chat = conversations.read(chat.id)
    assert chat.messages(B, 1) == chat.messages(A, 1) and chat.messages(B, 1)[1]["content"] == "a"
    for turn, model in ((0, B), (0, "run:x"), (7, A)):
        with pytest.raises(LabError, match="no answer"):
            conversations.continue_from(chat.id, turn, model)


def test_models_of_a_conversation_are_one_to_four_and_different(lab_home: Path) -> None:
    for models in ([], [A, A], [f"base:org/{n}" for n in range(5)]):
        with pytest.raises(LabError, match="1 to 4 different"):
            conversations.create(models)


def test_it_is_taken_away_as_markdown(lab_home: Path) -> None:
    text = conversations.as_markdown(chat_with(Answer(text="Wren", finish="length")))
    assert "# Question 0" in text and "**base:org/a** (length):" in text and "Wren" in text
    answers = (Answer(finish="failed", error="No memory."), Answer(text="Ha", finish="stopped"))
    text = conversations.as_markdown(chat_with(*answers))
    assert "**base:org/a** (failed):\n\nNo memory." in text, "why there is no answer"
    assert "**base:org/a** (stopped):\n\nHa" in text, "it is not whole"


def test_the_conversation_that_was_changed_last_comes_first(lab_home: Path) -> None:
    older, newer = chat_with(), chat_with()
    conversations.rename(older.id, "goes on")
    listed = [chat.id for chat in conversations.all_conversations()]
    assert listed == [older.id, newer.id]


def test_a_title_is_one_line_and_short(lab_home: Path) -> None:
    chat = chat_with(Answer(finish="stop"))
    conversations.rename(chat.id, "  My\n chat ")
    assert conversations.read(chat.id).name == "My chat"
    with pytest.raises(LabError, match="81 characters"):
        conversations.rename(chat.id, "x" * 81)


def test_an_answer_of_another_turn_that_nobody_makes_is_interrupted(lab_home: Path) -> None:
    chat = chat_with(Answer(), Answer())
    chat.interrupt(but=frozenset({(1, A)}))
    assert [turn.answers[A].finish for turn in chat.turns] == ["interrupted", ""]
