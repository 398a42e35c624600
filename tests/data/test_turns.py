# ruff: noqa: E501 (one case a line)
"""The forms in which files hold turns, each with the messages that it stands for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab.data.examples import example
from lab.data.formats import ReadOptions
from lab.data.lines import InvalidRow

HH = "\n\nHuman: What is\nbasil?\n\nAssistant: A herb.\n\nHuman: Sure?\n\nAssistant: Yes: a herb."
HH_TURNS = [
    ("user", "What is\nbasil?"),
    ("assistant", "A herb."),
    ("user", "Sure?"),
    ("assistant", "Yes: a herb."),
]
TURNS = [{"role": "user", "content": 'a\'s "b"'}, {"role": "assistant", "content": "c"}]
PLAIN = [("user", 'a\'s "b"'), ("assistant", "c")]


def messages(value: Any, **options: Any) -> list[tuple[str, str]]:
    read = example(1, value, ReadOptions(**options))
    return [(message["role"], message["content"]) for message in read.messages]


FORMS: list[tuple[str, Any, list[tuple[str, str]]]] = [
    ("JSON in a text", {"messages": json.dumps(TURNS)}, PLAIN),
    ("Python's form in a text", {"messages": str(TURNS)}, PLAIN),
    ("headings", {"messages": HH}, HH_TURNS),
    ("headings with ###", {"conversation": "### Human: q### Assistant: a"}, [("user", "q"), ("assistant", "a")]),
    ("a system heading", {"messages": "SYSTEM: be\nUSER: q\n\n\nASSISTANT: a"}, [("system", "be"), ("user", "q"), ("assistant", "a")]),
    ("pairs", {"conversation": [{"human": "q", "assistant": "a"}, {"human": "r", "assistant": "b"}]}, [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]),
    ("texts in turn", {"conversations": ["q", "a", "r", "b"]}, [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]),
    ("speakers", {"dialog": [{"speaker": "USER", "text": "q"}, {"speaker": "bot", "text": "a"}]}, [("user", "q"), ("assistant", "a")]),
    ("parts", {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}], "systemInstruction": {"parts": [{"text": "be"}]}}, [("system", "be"), ("user", "q"), ("assistant", "a")]),
    ("a system prompt in parts", {"system": [{"text": "be"}], "messages": TURNS}, [("system", "be"), *PLAIN]),
    ("names of other chats", {"conversations": [{"from": "human", "value": "q"}, *({"from": name, "value": name} for name in ("gpt", "chatgpt", "bing", "bard"))]}, [("user", "q"), *(("assistant", name) for name in ("gpt", "chatgpt", "bing", "bard"))]),
    ("a system turn between", {"messages": [*TURNS, {"role": "system", "content": "be"}, *TURNS]}, [*PLAIN, ("system", "be"), *PLAIN]),
    ("two system turns", {"messages": [{"role": "system", "content": "x"}, {"role": "developer", "content": "y"}, *TURNS]}, [("system", "x"), ("system", "y"), *PLAIN]),
    ("numbers", {"question": "1+1", "answer": 2}, [("user", "1+1"), ("assistant", "2")]),
    ("a fraction", {"question": "1/4", "answer": 0.25}, [("user", "1/4"), ("assistant", "0.25")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "turns"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS]
)
def test_turns_of_every_form_become_messages(value: Any, turns: list[tuple[str, str]]) -> None:
    assert messages(value) == turns


def test_dialogues_in_comparisons_are_read_as_conversations() -> None:
    row = {"chosen": HH, "rejected": HH.replace("Yes", "No")}
    with pytest.raises(InvalidRow, match=r"set data\.format to preference to learn"):
        messages(row)
    assert messages(row, form="preference") == HH_TURNS
    asked = {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": "b"}
    assert messages(asked, form="preference") == [("user", "q"), ("assistant", " a")]


def test_comparisons_of_fine_tuning_files_are_offered_with_the_mapping_that_reads_them() -> None:
    row = {
        "input": {"messages": TURNS[:1], "tools": [], "parallel_tool_calls": True},
        "preferred_output": TURNS[1:],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    with pytest.raises(
        InvalidRow, match=r"preference and data\.columns to {.messages.: .input.messages.}"
    ):
        messages(row)
    assert messages(row, form="preference", columns={"messages": "input.messages"}) == PLAIN


def test_calls_and_results_among_parts_become_turns_of_their_own() -> None:
    read = example(1, {"messages": [
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, {"type": "tool_use", "id": "t1", "name": "rain", "input": {"town": "Oslo"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "wet"}]}, {"type": "text", "text": "And?"}]},
        {"role": "assistant", "content": "It rains."},
    ]}, ReadOptions())  # fmt: skip
    assert [m["role"] for m in read.messages] == ["user", "assistant", "tool", "user", "assistant"]
    assert read.messages[1]["tool_calls"][0]["function"] == {
        "name": "rain",
        "arguments": {"town": "Oslo"},
    }
    assert read.messages[2] == {"role": "tool", "content": "wet", "tool_call_id": "t1"}
    assert [m["content"] for m in read.messages[3:]] == ["And?", "It rains."]


@pytest.mark.parametrize(
    "text",
    ["Human: only one side", "see Human: x\n\nAssistant: y", "[1, 2", "[{'a': open}]", "[{'a': {1, 2}}]", "[" * 5000],
)  # fmt: skip
def test_what_spells_no_turns_is_refused(text: str) -> None:
    with pytest.raises(InvalidRow, match=r"'messages' is .* not JSON"):
        messages({"messages": text})


def test_a_text_that_spells_turns_is_learned_as_text_with_the_mapping_in_a_note() -> None:
    read = example(1, {"text": HH}, ReadOptions())
    assert read.text == HH and 'data.columns to {"messages": "text"}' in read.notes[0]
    assert messages({"text": HH}, columns={"messages": "text"}) == HH_TURNS
    assert example(1, {"text": "Human: a rare noun"}, ReadOptions()).notes == ()


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"question": "q", "answers": ["a", "b"]}, "answers.0"),
        ({"question": "q", "answers": {"text": ["a"], "answer_start": [3]}}, "answers.text.0"),
        ({"user": "q", "assistant": "a"}, "assistant"),
    ],
)
def test_answers_inside_lists_are_offered_where_they_stand(
    row: dict[str, Any], column: str
) -> None:
    with pytest.raises(InvalidRow, match=f'"completion": "{column}"') as caught:
        messages(row)
    columns = json.loads(str(caught.value).partition("data.columns to ")[2])
    assert messages(row, columns=columns)[-1] == ("assistant", "a")


def test_a_thought_in_a_column_is_named_and_learned_once_it_is_mapped() -> None:
    row = {"question": "q", "cot": "so", "answer": "a"}
    assert "set data.columns.thought to 'cot'" in example(1, row, ReadOptions()).notes[0]
    read = example(1, row, ReadOptions(form="question-answer", columns={"thought": "cot"}))
    assert read.messages[-1]["reasoning_content"] == "so" and read.notes == ()
    assert example(1, row, ReadOptions(columns={"thought": "cot"})).messages == read.messages


def test_a_mark_that_would_learn_a_user_is_noted() -> None:
    weighed = [{**TURNS[0], "weight": 1}, {**TURNS[1], "weight": 1}]
    assert example(1, {"messages": weighed}, ReadOptions()).notes == (), "all turns have weights"
    turns = [{**TURNS[0], "train": True}, {**TURNS[1], "train": True}]
    assert example(1, {"messages": turns}, ReadOptions()).notes == (
        "turns of the user are marked as learned; only answers are",
    )
