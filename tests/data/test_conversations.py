# ruff: noqa: E501 (one case a line)
"""Rows as people have them: thoughts, tools, marks, earlier turns, and keys that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.data.example_reader import ExampleReader
from lab.data.examples import example
from lab.data.formats import Example, ReadOptions, shortened
from lab.data.lines import InvalidRow
from lab.errors import LabError
from tests.conftest import write_rows


def read(value: Any, **options: Any) -> Example:
    return example(1, value, ReadOptions(**options))


def talk(*turns: dict[str, Any], **beside: Any) -> dict[str, Any]:
    return {"messages": list(turns), **beside}


def user(content: Any = "ask", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def answer(content: Any = "said", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


CALL = {"type": "function", "function": {"name": "weigh", "arguments": {"stone": 3}}}


# Marks -------------------------------------------------------------------------------------------

OFF = [
    {"weight": 1, "train": False},
    {"weight": 0},
    {"weight": 0.0},
    {"train": False},
    {"training": False},
    {"trainable": 0},
    {"loss": False},
    {"learn": "false"},
    {"loss_mask": 0},
    {"masked": True},
    {"masked": 1},
    {"masked": "True"},
]
ON = [
    {},
    {"weight": 1},
    {"weight": 1.0},
    {"train": True},
    {"loss": "true"},
    {"masked": False},
    {"masked": 0},
    {"loss_mask": 1},
    {"weight": None},
]


@pytest.mark.parametrize("mark", OFF, ids=str)
def test_a_marked_answer_is_not_learned_and_that_is_told(mark: dict[str, Any]) -> None:
    chat = read(talk(user(), answer("no", **mark), user(), answer("yes")))
    assert [message.get("learn") for message in chat.messages] == [None, False, None, None]
    assert chat.notes == ("answers are marked as not to be learned",)
    whole = read({"prompt": "p", "completion": "c", **mark})
    assert whole.messages[1].get("learn") is False, "the mark of a row holds for its answers"
    assert whole.notes == ("answers are marked as not to be learned",)


@pytest.mark.parametrize("mark", ON, ids=str)
def test_an_answer_that_is_marked_as_learned_is_as_any_other(mark: dict[str, Any]) -> None:
    chat = read(talk(user(), answer(**mark)))
    assert chat.messages == (
        {"role": "user", "content": "ask"},
        {"role": "assistant", "content": "said"},
    )
    assert chat.notes == () == read({"prompt": "p", "completion": "c", **mark}).notes


@pytest.mark.parametrize(
    "mark",
    [{"weight": 0.5}, {"weight": -1}, {"train": "some"}, {"masked": [1]}, {"loss": 0.37}],
    ids=str,
)
def test_a_mark_that_is_neither_yes_nor_no_is_named(mark: dict[str, Any]) -> None:
    (name,) = mark
    chat = read(talk(user(), answer(**mark)))
    assert "learn" not in chat.messages[1]
    assert chat.notes == (f"'{name}' of a message is not used",)


def test_a_text_that_is_marked_as_not_to_be_learned_is_refused() -> None:
    with pytest.raises(InvalidRow, match="marked as not to be learned"):
        read({"text": "once", "weight": 0})
    assert read({"text": "once", "weight": 1}).text == "once"


# Thoughts and tools ------------------------------------------------------------------------------


def test_a_thought_within_the_content_stays_there() -> None:
    content = "<think>\nround\n</think>\n\n3 pounds"
    assert read(talk(user(), answer(content))).messages[1] == {
        "role": "assistant",
        "content": content,
    }


@pytest.mark.parametrize(
    ("key", "carried"),
    [
        ("reasoning_content", "reasoning_content"),
        ("thinking", "thinking"),
        ("reasoning", "reasoning_content"),
        ("thought", "reasoning_content"),
    ],
)
def test_a_thought_beside_the_content_is_carried(key: str, carried: str) -> None:
    chat = read(talk(user(), answer(**{key: "it is {{shape}}"})), slots={"shape": "round"})
    assert chat.messages[1][carried] == "it is round" and chat.notes == ()
    assert set(read(talk(user(), answer(**{key: None}))).messages[1]) == {"role", "content"}


def test_a_thought_may_be_a_part_of_the_content() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    assert read(talk(user(), answer(parts))).messages[1] == {
        "role": "assistant",
        "content": "ab",
        "thinking": "hm",
    }


ARGUMENTS = [{"stone": 3}, '{"stone": 3}']
CALLS: list[dict[str, Any]] = [
    *(
        {"tool_calls": [{"type": "function", "function": {"name": "weigh", "arguments": given}}]}
        for given in ARGUMENTS
    ),
    *({"function_call": {"name": "weigh", "arguments": given}} for given in ARGUMENTS),
    {"tool_calls": [{"name": "weigh", "arguments": {"stone": 3}}]},
    {"tool_calls": json.dumps([CALL])},
    {"tool_calls": CALL},
]


@pytest.mark.parametrize("calls", CALLS, ids=str)
@pytest.mark.parametrize("content", [None, "", "  ", "One moment."])
def test_calls_reach_the_template_in_one_form_with_or_without_words(
    calls: dict[str, Any], content: str | None
) -> None:
    chat = read(talk(user(), answer(content, **calls)))
    said = content if content and content.strip() else ""
    assert chat.messages[1] == {"role": "assistant", "content": said, "tool_calls": [CALL]}
    assert chat.notes == ()


def test_the_turns_of_a_tool_are_carried_in_every_writing() -> None:
    turns = [
        {"from": "human", "value": "Weigh it."},
        {"from": "function_call", "value": '{"name": "weigh", "arguments": {"stone": 3}}'},
        {"from": "observation", "value": '{"pounds": 7}'},
        {"from": "gpt", "value": "Seven pounds."},
    ]
    chat = read(
        {
            "conversations": turns,
            "tools": json.dumps([{"name": "weigh", "parameters": {}}]),
            "system": "You weigh.",
        }
    )
    assert [message["role"] for message in chat.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert chat.messages[2] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert chat.messages[3]["content"] == '{"pounds": 7}'
    assert chat.tools == [{"type": "function", "function": {"name": "weigh", "parameters": {}}}]
    assert chat.notes == ()


@pytest.mark.parametrize("role", ["tool", "function", "observation", "ipython", "tool_response"])
@pytest.mark.parametrize(
    ("content", "written"),
    [({"pounds": 7}, '{"pounds": 7}'), ([1, "ü"], '[1, "ü"]'), ("", ""), (None, ""), ("7", "7")],
)
def test_a_result_may_be_any_value_or_nothing(role: str, content: Any, written: str) -> None:
    result = {"role": role, "name": "weigh", "tool_call_id": "c1", "content": content}
    chat = read(talk(user(), answer("", tool_calls=[CALL]), result, answer()))
    assert chat.messages[2] == {
        "role": "tool",
        "content": written,
        "name": "weigh",
        "tool_call_id": "c1",
    }


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (answer("", tool_calls=[]), "'content' has no text"),
        (answer("", tool_calls=[5]), "not a list of calls"),
        (answer("", tool_calls="weigh it"), "is not JSON|which is not JSON"),
        (answer("", tool_calls=[{"function": {"arguments": {}}}]), "names no function"),
        (answer("", tool_calls=[{"name": "f", "arguments": deep(500)}]), "nested too deeply"),
        (answer("", tool_calls=[{"name": "f\0", "arguments": {}}]), "NUL"),
        (answer(None), "'content' is null, not text"),
        (answer([{"type": "tool_use"}]), "names no function"),
        ({"role": "wizard", "content": "x"}, "the role 'wizard'"),
    ],
)  # fmt: skip
def test_a_turn_that_cannot_be_carried_is_refused_by_name(value: Any, says: str) -> None:
    with pytest.raises(InvalidRow, match=says) as caught:
        read(talk(user(), value))
    assert str(caught.value).startswith("message 2 ")


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        (5, "'tools' is 5"),
        ("weigh", "'tools' is 'weigh', which is not JSON"),
        ([5], "not a list of tools"),
        ([{"a": deep(100)}], "nested too deeply"),
    ],
)
def test_tools_that_are_none_are_refused(tools: Any, says: str) -> None:
    with pytest.raises(InvalidRow, match=says):
        read(talk(user(), answer(), tools=tools))
    assert read(talk(user(), answer(), tools=[])).tools is None


def test_two_turns_of_a_role_are_left_to_the_template() -> None:
    chat = read(talk(user("a"), user("b"), answer("c"), answer("d")))
    assert [message["content"] for message in chat.messages] == ["a", "b", "c", "d"]


# What stands beside a conversation ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["system", "system_prompt", "System"])
@pytest.mark.parametrize(
    "row",
    [
        talk(user(), answer()),
        {"conversations": [user(), answer()]},
        {"prompt": "ask", "completion": "said"},
        {"question": "ask", "answer": "said"},
        {"instruction": "ask", "response": "said"},
    ],
)
def test_a_system_text_beside_a_conversation_comes_first(row: dict[str, Any], name: str) -> None:
    chat = read({**row, name: "Be kind."})
    assert chat.messages[0] == {"role": "system", "content": "Be kind."}
    assert [message["content"] for message in chat.messages[1:]] == ["ask", "said"]
    assert [message["role"] for message in read({**row, name: "  "}).messages] == [
        "user",
        "assistant",
    ]


def test_two_system_texts_have_to_agree() -> None:
    spoken = talk({"role": "system", "content": "Be kind."}, user(), answer())
    assert len(read({**spoken, "system": "Be kind. "}).messages) == 3
    with pytest.raises(InvalidRow, match="has a system turn, and another text in 'system'"):
        read({**spoken, "system": "Be short."})


HISTORIES: list[Any] = [
    [["How many?", "Four."]], '[["How many?", "Four."]]', [{"user": "How many?", "assistant": "Four."}],
    [user("How many?"), answer("Four.")],
]  # fmt: skip


@pytest.mark.parametrize("history", HISTORIES, ids=str)
@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "ask", "input": "", "output": "said"},
        {"prompt": "ask", "completion": "said"},
        {"question": "ask", "answer": "said"},
    ],
)
def test_a_history_comes_behind_the_system_turn_of_the_prompt(
    row: dict[str, Any], history: Any
) -> None:
    (question,) = [key for key in ("instruction", "prompt", "question") if key in row]
    turns = [{"role": "system", "content": "You count."}, user()]
    chat = read({**row, question: turns, "history": history})
    assert [message["content"] for message in chat.messages] == [
        "You count.", "How many?", "Four.", "ask", "said",
    ]  # fmt: skip


@pytest.mark.parametrize("history", HISTORIES, ids=str)
@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "ask", "input": "", "output": "said"},
        {"prompt": "ask", "completion": "said"},
        {"question": "ask", "answer": "said"},
    ],
)
def test_a_history_comes_before_the_question(row: dict[str, Any], history: Any) -> None:
    chat = read({**row, "history": history, "system": "You count."})
    assert [(m["role"], m["content"]) for m in chat.messages] == [
        ("system", "You count."), ("user", "How many?"), ("assistant", "Four."), ("user", "ask"), ("assistant", "said"),
    ]  # fmt: skip
    for nothing in ([], None, ""):
        assert len(read({**row, "history": nothing}).messages) == 2


@pytest.mark.parametrize(
    "history", ["yesterday", 5, [["only"]], [["a", "b", "c"]], [["a", None]], [5]], ids=str
)
def test_a_history_that_is_none_is_refused(history: Any) -> None:
    with pytest.raises(InvalidRow, match="'history'"):
        read({"prompt": "ask", "completion": "said", "history": history})


def test_a_thought_in_a_column_stands_before_the_last_answer_alone() -> None:
    row = {"question": "ask", "answer": "said", "history": [["How many?", "Four."]], "cot": "so"}
    chat = read(row, columns={"thought": "cot"}, form="question-answer")
    assert [(m["content"], m.get("reasoning_content")) for m in chat.messages] == [
        ("How many?", None), ("Four.", None), ("ask", None), ("said", "so"),
    ]  # fmt: skip
    for key in ("reasoning_content", "thinking"):
        pair = {"prompt": [user()], "completion": [answer(**{key: "hm"})], "cot": "so"}
        with pytest.raises(InvalidRow, match="has a thought in its answer, and one in 'cot'"):
            read(pair, columns={"thought": "cot"}, form="prompt-completion")


# Keys that cannot be used ------------------------------------------------------------------------

PAIR = {"prompt": "p", "completion": "c"}
HARMLESS = {
    "id": 7,
    "source": "web",
    "score": 0.9,
    "category": "c",
    "language": "de",
    "url": "http://x",
    "created_at": "2020",
    "tags": ["a", "b"],
    "prompt_id": "p7",
    "metadata": {"a": {"b": "c" * 900}},
    "Model": "m",
    "__index_level_0__": 3,
    "Unnamed: 0": 0,
}


def test_where_a_row_comes_from_needs_no_note() -> None:
    assert read({**PAIR, **HARMLESS}).notes == ()
    assert read(talk(user(id=1, timestamp="t"), answer(model="m"), **HARMLESS)).notes == ()


@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_an_empty_key_needs_no_note(empty: Any) -> None:
    assert read({**PAIR, "images": empty, "persona": empty, "rejected": empty}).notes == ()


NAMED: list[tuple[str, Any, str]] = [
    ("persona", "gruff", "'persona' is not used"),
    ("images", ["a.png"], "'images' is not used: the text is learned without its pictures"),
    ("image_url", "http://x/a.png", "'image_url' is not used: the text is learned without its pictures"),
    ("audio", {"path": "a.wav"}, "'audio' is not used: the text is learned without its sounds"),
    ("videos", ["a.mp4"], "'videos' is not used: the text is learned without its videos"),
    ("context", "It rains.", "'context' is not used; set data.columns.input to 'context' to put it behind the prompt"),
    ("documents", [{"text": "d"}], "'documents' is not used"),
    ("prefix", True, "'prefix' is not used"),
    ("enable_thinking", False, "'enable_thinking' is not used"),
    ("tool_call_id", "c1", "'tool_call_id' is not used"),
    ("solution", "42", "'solution' is not used; set data.columns.completion to 'solution' to learn it as the answer"),
    ("rejected", "bad", "'rejected' is not used: only the chosen answers are learned"),
    ("source", "A text of several hundred characters. " * 20, "'source' is not used"),
    ("label", 3, "'label' is not used"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "says"), NAMED, ids=[case[0] for case in NAMED])
def test_a_key_that_cannot_be_used_is_named(key: str, value: Any, says: str) -> None:
    for row in (PAIR, {"question": "q", "answer": "a"}, talk(user(), answer())):
        assert read({**row, key: value}).notes == (says,)


def test_a_key_within_a_message_is_named() -> None:
    chat = read(talk(user(mood="sad", images=["a.png"]), answer(prefix=True)))
    assert chat.notes == (
        "'mood' of a message is not used",
        "'images' of a message is not used: the text is learned without its pictures",
        "'prefix' of a message is not used",
    )


def test_pictures_among_the_parts_are_named_and_the_text_is_learned() -> None:
    chat = read(
        talk(
            user(
                [
                    {"type": "image_url", "image_url": {"url": "x"}},
                    {"type": "text", "text": "What is it?"},
                ]
            ),
            answer(),
        )
    )
    assert chat.messages[0]["content"] == "What is it?"
    assert chat.notes == (
        "'image_url' in messages is not used: the text is learned without its pictures",
    )


def test_many_keys_are_not_named_without_end() -> None:
    chat = read({**PAIR, **{f"k{number}": number + 1 for number in range(100)}})
    assert len(chat.notes) == 13 and chat.notes[-1] == "more than 12 keys are not used"


def test_one_note_stands_for_all_rows_that_share_it(tmp_path: Path) -> None:
    rows: list[Any] = [
        PAIR,
        *[{**PAIR, "persona": f"p{n}"} for n in range(40)],
        {**PAIR, "mood": "m"},
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    reader = ExampleReader(tmp_path / "a.jsonl")
    assert len(list(reader)) == 42
    assert reader.notes() == [
        "'persona' is not used (40 rows, the first is row 2).",
        "'mood' is not used (row 42).",
    ]


# Preferences, good and bad answers, mappings -----------------------------------------------------

WHOLE = [user("ask"), answer("good")]
PREFERENCES: list[dict[str, Any]] = [
    {"prompt": "ask", "chosen": "good", "rejected": "bad"},
    {"question": "ask", "chosen": "good", "rejected": "bad"},
    {"instruction": "ask", "input": "", "chosen": "good", "rejected": "bad"},
    {"prompt": [user("ask")], "chosen": [answer("good")], "rejected": [answer("bad")]},
    {"chosen": WHOLE, "rejected": [user("ask"), answer("bad")]},
    {"prompt": "ask", "chosen": WHOLE, "rejected": [user("ask"), answer("bad")], "score_chosen": 9.0},
    {"conversations": [{"from": "human", "value": "ask"}], "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}},
]  # fmt: skip


@pytest.mark.parametrize("row", PREFERENCES, ids=str)
def test_a_preference_is_named_and_its_chosen_answer_can_be_learned(row: dict[str, Any]) -> None:
    with pytest.raises(
        InvalidRow, match=r"is a preference .* set data.format to preference to learn the chosen"
    ):
        read(row)
    chat = read(row, form="preference")
    assert [(m["role"], m["content"]) for m in chat.messages] == [
        ("user", "ask"),
        ("assistant", "good"),
    ]
    assert chat.notes == ("'rejected' is not used: only the chosen answers are learned",)


def test_a_chosen_answer_may_be_mapped() -> None:
    chat = read(PREFERENCES[0], columns={"prompt": "prompt", "completion": "chosen"})
    assert chat.messages[1]["content"] == "good"
    assert read(PREFERENCES[4], columns={"messages": "chosen"}).messages[1]["content"] == "good"


def test_pairs_of_message_lists_are_conversations() -> None:
    chat = read(
        {"prompt": [{"role": "system", "content": "s"}, user()], "completion": [answer(weight=0)]}
    )
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[2]["learn"] is False


@pytest.mark.parametrize("key", ["label", "kto_tag", "Label"])
@pytest.mark.parametrize("row", [PAIR, talk(user("p"), answer("c"))])
@pytest.mark.parametrize(
    ("value", "learn"), [(True, None), ("True", None), (False, False), ("false", False)]
)
def test_an_answer_marked_as_bad_is_not_learned_and_what_is_lost_is_told(
    row: Any, key: str, value: Any, learn: bool | None
) -> None:
    chat = read({**row, key: value})
    assert chat.messages[1].get("learn") is learn
    assert any(
        note.startswith(f"'{key}' says good or bad: ") and note.endswith("is lost")
        for note in chat.notes
    )


OFFERS: list[tuple[dict[str, Any], str]] = [
    ({"task_id": "t/1", "problem": "p", "canonical_solution": "s", "test": "t"}, '"completion": "canonical_solution"'),
    ({"prompt": "p", "canonical_solution": "s"}, '{"prompt": "prompt", "completion": "canonical_solution"}'),
    ({"question": "q", "choices": ["a", "b"], "answer_key": "B"}, '{"prompt": "question", "choices": "choices", "completion": "answer_key"}'),
    ({"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}, '"completion": "answerKey"'),
    ({"Problem": "p", "Solution": "s"}, '{"prompt": "Problem", "completion": "Solution"}'),
    ({"article": "long", "highlights": "short"}, '{"prompt": "article", "completion": "highlights"}'),
]  # fmt: skip


@pytest.mark.parametrize(("row", "offer"), OFFERS, ids=[str(list(case[0])) for case in OFFERS])
def test_the_mapping_that_would_do_is_offered_and_does(row: dict[str, Any], offer: str) -> None:
    with pytest.raises(InvalidRow) as caught:
        read(row)
    message = str(caught.value)
    assert offer in message, message
    columns = json.loads(message[message.index("{") :])
    assert read(row, columns=columns).messages[-1]["content"] in ("s", "short", "B. b")


@pytest.mark.parametrize(
    ("form", "columns", "says"),
    [
        ("messages", {"prompt": "a"}, "names prompt, which the format messages does not use"),
        ("text", {"text": "a", "input": "b"}, "names input, which the format text does not use"),
        ("auto", {"text": "a", "completion": "b"}, "names completion, which the format text does not use"),
        ("tree", {"system": "a"}, "names system, which the format tree does not use; data.format messages or"),
        ("labels", {"history": "a"}, "names history"),
    ],
)  # fmt: skip
def test_a_part_that_the_format_does_not_use_is_refused(
    form: str, columns: dict[str, str], says: str
) -> None:
    with pytest.raises(InvalidRow, match=says):
        read(
            {"a": "x", "b": "y", "text": "t", "label": "l", "messages": WHOLE},
            form=form,
            columns=columns,
        )


def test_a_part_beside_the_format_leaves_it_to_be_detected() -> None:
    chat = read(
        {"question": "q", "answer": "a", "context": "It rains.", "note": "s"},
        columns={"input": "context", "system": "note"},
    )
    assert [m["content"] for m in chat.messages] == [
        "s",
        "q\n\nIt rains.",
        "a",
    ] and chat.notes == ()


def test_names_with_capitals_and_blanks_are_read_and_that_is_told() -> None:
    chat = read({" Prompt": "p", "COMPLETION ": "c"})
    assert [m["content"] for m in chat.messages] == ["p", "c"]
    assert chat.notes == (
        "column ' Prompt' is read as 'prompt'",
        "column 'COMPLETION ' is read as 'completion'",
    )
    assert (
        read(
            {"Topic": "p", "Said": "c"}, columns={"prompt": "topic", "completion": "said"}
        ).messages[1]["content"]
        == "c"
    )


def test_a_list_of_turns_is_a_conversation_and_a_turn_is_none() -> None:
    assert read([user(), answer()]).messages[1]["content"] == "said"
    assert read({"messages": json.dumps([user(), answer()])}).messages[1]["content"] == "said"
    with pytest.raises(InvalidRow, match="is one message; put the messages"):
        read(user())


def test_what_a_long_turn_holds_besides_its_content_is_shortened_too() -> None:
    calls = [{"name": "f", "arguments": {"text": "x" * 50_000}}]
    long = read(
        talk(user(), answer("y" * 50_000, reasoning_content="z" * 50_000, tool_calls=calls))
    )
    assert len(json.dumps(shortened(long, 1000).messages)) < 5000


def test_a_file_that_marks_all_its_answers_leaves_nothing_to_learn(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "a", "weight": 0}] * 3)
    with pytest.raises(LabError, match=r"3 of 3 rows .* row 1 and 2 more: is marked as not to be"):
        list(ExampleReader(tmp_path / "a.jsonl"))
