"""Which answer of a row is learned: trees of replies, choices, labels, columns."""

from __future__ import annotations

from typing import Any

import pytest

from lab.data.examples import example
from lab.data.formats import ReadOptions, columns_of, detect
from lab.data.readers import InvalidRow


def turns(value: Any, **reading: Any) -> list[tuple[str, str]]:
    found = example(1, value, ReadOptions(**reading))
    return [(turn["role"], turn["content"]) for turn in found.messages]


def reply(text: str, *replies: Any, role: str = "assistant", **more: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": list(replies), **more}


def tree(*replies: Any) -> dict[str, Any]:
    return {"prompt": reply("ask", *replies, role="prompter")}


def test_the_best_ranked_reply_is_learned_at_every_turn() -> None:
    """Rank 0 is the best, wherever it stands; a reply without a rank comes last."""
    better = reply(
        "good",
        reply("and then?", reply("worse", rank=1), reply("best", rank=0), role="prompter"),
        rank=0,
    )
    value = tree(reply("bad", rank=2), reply("unranked"), better, reply("middling", rank=1))
    assert turns(value) == [
        ("user", "ask"), ("assistant", "good"), ("user", "and then?"), ("assistant", "best"),
    ]  # fmt: skip


def test_deleted_replies_are_passed_over_and_the_first_of_equals_is_taken() -> None:
    value = tree(reply("gone", rank=0, deleted=True), reply("first"), reply("second"))
    assert turns(value) == [("user", "ask"), ("assistant", "first")]


def test_a_tree_ends_with_an_answer() -> None:
    value = tree(reply("said", reply("thanks", role="prompter"), rank=0))
    assert turns(value) == [("user", "ask"), ("assistant", "said")]


CHOICES = ["red", "green", "blue"]


@pytest.mark.parametrize(
    "answer", [1, "1", "B", "b", " b ", "green"], ids=lambda value: repr(value)
)
def test_a_right_answer_in_all_its_forms(answer: Any) -> None:
    value = {"question": "Which?", "choices": CHOICES, "answer": answer}
    assert turns(value) == [
        ("user", "Which?\n\nA. red\nB. green\nC. blue"),
        ("assistant", "B. green"),
    ]


@pytest.mark.parametrize("answer", [3, -1, "D", "grey", "", None, True, 1.0])
def test_an_answer_that_is_none_of_the_choices(answer: Any) -> None:
    with pytest.raises(InvalidRow, match="none of the 3 choices"):
        turns({"question": "Which?", "choices": CHOICES, "answer": answer})


def test_labels_of_choices_come_before_places() -> None:
    labelled = {"text": CHOICES, "label": ["1", "2", "3"]}
    value = {"question": "Which?", "choices": labelled, "answer": "1"}
    assert turns(value)[1] == ("assistant", "A. red"), "the first is called 1"


def test_first_and_last_choices_by_number_and_letter() -> None:
    for answer, said in ((0, "A. red"), ("A", "A. red"), (2, "C. blue"), ("c", "C. blue")):
        value = {"question": "Which?", "choices": CHOICES, "answer": answer}
        assert turns(value)[1] == ("assistant", said), f"answer {answer!r}"


@pytest.mark.parametrize(
    "names", [[f"choice{n}" for n in range(4)], [f"choice{n}" for n in range(1, 5)], list("ABCD")]
)
def test_choices_in_columns_of_their_own(names: list[str]) -> None:
    value = {"question": "Which?", **dict(zip(names, "wxyz", strict=True)), "answer": "D"}
    assert detect(value) == "multiple-choice"
    assert turns(value) == [("user", "Which?\n\nA. w\nB. x\nC. y\nD. z"), ("assistant", "D. z")]


@pytest.mark.parametrize("first", [0, 1])
def test_ten_choices_in_columns_are_ten(first: int) -> None:
    names = [f"choice{number}" for number in range(first, first + 10)]
    value = {"question": "Which?", **dict(zip(names, "qrstuvwxyz", strict=True)), "answer": "J"}
    assert turns(value)[1] == ("assistant", "J. z")


def test_a_class_by_number_is_its_number() -> None:
    assert turns({"text": "t", "label": 3})[1] == ("assistant", "3")
    assert turns({"sentence": "t", "intent": 0})[1] == ("assistant", "0")


def test_a_system_column_comes_first_if_it_says_something() -> None:
    row = {"instruction": "ask", "input": "this", "output": "said", "system": "be kind"}
    plain = [("user", "ask\n\nthis"), ("assistant", "said")]
    assert turns(row) == [("system", "be kind"), *plain]
    for empty in ("", None):
        assert turns({**row, "system": empty}) == plain
        assert turns({**row, "system": empty, "input": empty})[0] == ("user", "ask")


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("prompter", "user"), ("gpt", "assistant"), ("model", "assistant"),
     ("bot", "assistant")],
)  # fmt: skip
def test_names_of_roles(name: str, role: str) -> None:
    other = "user" if role == "assistant" else "assistant"
    pair = [{"from": name, "value": "a"}, {"from": other, "value": "b"}]
    ordered = pair if role == "user" else pair[::-1]
    assert (role, "a") in turns({"conversations": ordered})


def test_a_developer_speaks_as_the_system() -> None:
    value = [("developer", "s"), ("user", "u"), ("assistant", "a")]
    messages = [{"role": role, "content": text} for role, text in value]
    assert turns({"messages": messages})[0] == ("system", "s")


def test_slots_are_filled_in_every_turn_and_column() -> None:
    slots = {"name": "Wren", "maker": "the Lab"}
    text = "{{name}} of {{maker}}, {{name}}, {{other}}"
    filled = "Wren of the Lab, Wren, {{other}}"
    rows: list[dict[str, Any]] = [
        {"prompt": text, "completion": text, "system": text},
        {"messages": [{"role": r, "content": text} for r in ("system", "user", "assistant")]},
    ]
    for row in rows:
        assert [content for _, content in turns(row, slots=slots)] == [filled] * 3
    assert example(1, {"text": text}, ReadOptions(slots=slots)).text == filled


def test_a_text_knows_whether_it_goes_on() -> None:
    assert example(1, {"text": "x", "goes_on": True}, ReadOptions()).goes_on
    assert not example(1, {"text": "x"}, ReadOptions()).goes_on
    assert not example(1, "x", ReadOptions()).goes_on


def test_columns_decide_the_shape_and_reach_into_values() -> None:
    row = {"a": {"b": ["x", "y", "z"]}, "c": "said", "d": "more", "text": "t"}
    assert turns(row, columns={"prompt": "a.b.1", "completion": "c"})[0] == ("user", "y")
    assert turns(row, columns={"prompt": "a.b.2", "completion": "c", "input": "d"}) == [
        ("user", "z\n\nmore"), ("assistant", "said"),
    ]  # fmt: skip
    columns = columns_of({"question": "q", "answer": "a"}, "question-answer")
    assert columns == {"prompt": "question", "completion": "answer"}


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"instruction": "a", "response": "b"}, "prompt-completion"),
        ({"query": "a", "reply": "b"}, "prompt-completion"),
        ({"question": "a", "answer": "b"}, "question-answer"),
        ({"question": "a", "options": ["b", "c"], "answer": "b"}, "multiple-choice"),
        ({"text": "a", "sentiment": "b"}, "labels"),
        ({"content": "a"}, "text"),
        ({"conversation": []}, "messages"),
        ("a", "text"),
    ],
)
def test_the_shape_is_seen_by_the_keys(row: Any, shape: str) -> None:
    assert detect(row) == shape
