"""From the value of a row to an example, whatever the shape of the row.

A shape says which columns hold what: the prompt, the completion, the text, the messages. `columns`
of the spec names others; a name with dots goes into nested values ("instances.0.output").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lab.data.files import BadRow
from lab.schema import quoted, show

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
# Which columns a shape takes, unless `columns` names others. The first that a row has is used.
SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"messages": ("messages", "conversations", "conversation")},
    "alpaca": {
        "prompt": ("instruction",),
        "input": ("input",),
        "completion": ("output",),
        "system": ("system",),
    },
    "prompt-completion": {
        "prompt": ("prompt", "instruction", "description", "query", "input", "request"),
        "completion": ("completion", "response", "output", "command", "target", "reply"),
        "system": ("system",),
    },
    "multiple-choice": {
        "prompt": ("question",),
        "choices": ("choices", "options"),
        "completion": ("answer",),
    },
    "question-answer": {"prompt": ("question",), "completion": ("answer",)},
    "labels": {
        "prompt": ("text", "sentence", "message"),
        "completion": ("label", "category", "intent", "class", "sentiment"),
    },
    "tree": {"messages": ("prompt", "tree")},
    "text": {"text": ("text", "content")},
}
OPTIONAL = ("input", "system")
PARTS = ("prompt", "input", "completion", "system", "text", "messages", "choices")
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Example:
    """One row. `row` counts from 1 in its file. Exactly one of messages and text is set.

    `goes_on` says that the text is a piece of one that the next row continues.
    """

    row: int
    messages: tuple[dict[str, str], ...] = ()
    text: str = ""
    goes_on: bool = False


@dataclass(frozen=True)
class Reading:
    """How the rows of a file become examples."""

    form: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)
    bad_rows: str = "refuse"
    limit: int | None = None


def detect(value: Any) -> str:
    """The shape of a row by its keys. Raises BadRow if it is none that the lab knows."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, dict):
        raise BadRow(f"is {quoted(value)}, not an object")
    keys = set(value)
    if keys & {"messages", "conversations", "conversation"}:
        return "messages"
    if isinstance(value.get("prompt"), dict) and "replies" in value["prompt"]:
        return "tree"
    if choices_of(value) and "answer" in keys and "question" in keys:
        return "multiple-choice"
    if {"instruction", "output"} <= keys:
        return "alpaca"
    for shape in ("question-answer", "prompt-completion", "labels"):
        parts = SHAPES[shape]
        if all(keys & set(parts[part]) for part in ("prompt", "completion")):
            return shape
    if keys & {"text", "content"}:
        return "text"
    names = ", ".join(show(key) for key in sorted(map(str, keys))) or "none"
    raise BadRow(
        f"keys {names}; expected messages, text, instruction and output, prompt and completion, "
        "question and answer, or text and label; name others in data.columns"
    )


def shape_by_columns(columns: dict[str, str]) -> str:
    """The shape that a mapping means, where the format is left open."""
    if "messages" in columns:
        return "messages"
    if "choices" in columns:
        return "multiple-choice"
    if "text" in columns:
        return "text"
    return "alpaca" if "input" in columns else "prompt-completion"


def columns_of(value: Any, shape: str, columns: dict[str, str] | None = None) -> dict[str, str]:
    """{part: column} that a row of this shape is read with; shown so that it can be edited."""
    if not isinstance(value, dict):
        return {}
    found = {}
    for part, names in SHAPES[shape].items():
        given = (columns or {}).get(part)
        name = given or next((name for name in names if name in value), "")
        if not name and part == "choices":
            name = ", ".join(choices_of(value))
        if name:
            found[part] = name
    return found


def choices_of(value: dict[str, Any]) -> list[str]:
    """The columns of the choices: one list, or choice0, choice1 … and A, B, C …"""
    for name in ("choices", "options"):
        if isinstance(value.get(name), list):
            return [name]
    for names in (
        [f"choice{number}" for number in range(11)],  # from 0 or from 1 on
        list(LETTERS),
    ):
        found = [name for name in names if name in value]
        if len(found) > 1:
            return found
    return []


def example(row: int, value: Any, reading: Reading) -> Example:
    """The example of a row. Raises BadRow."""
    shape = reading.form
    if shape == "auto":
        shape = shape_by_columns(reading.columns) if reading.columns else detect(value)
    if shape == "text" and isinstance(value, str) and not reading.columns:
        value = {"text": value}  # a list of texts
    if not isinstance(value, dict):
        raise BadRow(f"is {quoted(value)}, not an object")
    where = columns_of(value, shape, reading.columns)
    fill = reading.slots
    if shape == "messages":
        return Example(row, messages=_turns(_at(value, where, "messages", shape), fill))
    if shape == "tree":
        root = _at(value, where, "messages", shape)
        return Example(row, messages=_turns(best_path(root), fill))
    if shape == "text":
        text = _filled(_at(value, where, "text", shape), _named(where, "text", shape), fill)
        return Example(row, text=text, goes_on=bool(value.get("goes_on")))
    question = _filled(_at(value, where, "prompt", shape), _named(where, "prompt", shape), fill)
    if shape == "multiple-choice":
        return Example(row, messages=_choice(question, value, where))
    said = _at(value, where, "completion", shape)
    name = _named(where, "completion", shape)
    if shape == "labels" and isinstance(said, int) and not isinstance(said, bool):
        said = str(said)  # a class by number
    answer = _filled(said, name, fill)
    if "input" in where:
        more = _at(value, where, "input", shape)
        if more not in (None, ""):
            question = f"{question}\n\n{_filled(more, where['input'], fill)}"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if "system" in where:
        system = _at(value, where, "system", shape)
        if system not in (None, ""):
            turns.insert(0, {"role": "system", "content": _filled(system, where["system"], fill)})
    return Example(row, messages=tuple(turns))


def best_path(root: Any) -> list[dict[str, Any]]:
    """One conversation of a tree of replies: the best ranked reply at each turn, else the first.
    Replies that are marked as deleted are passed over; it ends with an assistant's turn."""
    path, node = [], root
    while isinstance(node, dict):
        path.append({"role": node.get("role"), "content": node.get("text", node.get("content"))})
        replies = [
            one
            for one in node.get("replies") or []
            if isinstance(one, dict) and not one.get("deleted")
        ]
        node = min(replies, key=_rank) if replies else None
    while len(path) > 1 and ROLES.get(str(path[-1]["role"])) != "assistant":
        path.pop()
    return path


def _rank(reply: dict[str, Any]) -> float:
    rank = reply.get("rank")
    return float(rank) if isinstance(rank, (int, float)) else math.inf


def _named(where: dict[str, str], part: str, shape: str) -> str:
    return where.get(part) or SHAPES[shape][part][0]


def _at(value: dict[str, Any], where: dict[str, str], part: str, shape: str) -> Any:
    """What stands under a column, or deeper where its name has dots. Raises BadRow."""
    name = _named(where, part, shape)
    if name in value:
        return value[name]
    found: Any = value
    for key in name.split("."):
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            raise BadRow(f"has no '{show(name)}'")
    return found


def _filled(text: Any, name: str, slots: dict[str, str]) -> str:
    """Text with its {{slots}} filled. Raises BadRow for what is no text."""
    if not isinstance(text, str):
        raise BadRow(f"'{show(name)}' is {quoted(text)}, not text")
    if not text.strip():
        raise BadRow(f"'{show(name)}' has no text")
    filled: str = text
    if "\0" in text:
        raise BadRow(f"'{show(name)}' holds a NUL character")
    if not text.isascii() and any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        raise BadRow(f"'{show(name)}' holds half of a Unicode pair")
    for slot, filling in slots.items():
        filled = filled.replace("{{" + slot + "}}", filling)
    return filled


def _turns(turns: Any, slots: dict[str, str]) -> tuple[dict[str, str], ...]:
    if not isinstance(turns, list) or not turns:
        raise BadRow("has no messages")
    messages: list[dict[str, str]] = []
    for place, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise BadRow(f"message {place} is {quoted(turn)}, not an object")
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role not in ROLES:
            raise BadRow(f"message {place} has the role {quoted(role)}; use {', '.join(ROLES)}")
        key = "content" if "content" in turn else "value"
        if key not in turn:
            raise BadRow(f"message {place} ({role}): has no 'content'")
        try:
            content = _filled(turn[key], key, slots)
        except BadRow as reason:
            raise BadRow(f"message {place} ({role}): {reason}") from None
        role = ROLES[role]
        if role == "system" and messages:
            raise BadRow(f"message {place} is a system turn; only the first may be one")
        if messages and messages[-1]["role"] == role:
            raise BadRow(f"messages {place - 1} and {place} are both of the {role}")
        messages.append({"role": role, "content": content})
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("has no assistant turn to learn from")
    return tuple(messages)


def _choice(
    question: str, value: dict[str, Any], where: dict[str, str]
) -> tuple[dict[str, str], ...]:
    """A question with lettered choices, and the right one with its letter."""
    names = [name.strip() for name in where.get("choices", "").split(",") if name.strip()]
    found = value.get(names[0]) if len(names) == 1 else [value.get(name) for name in names]
    if not isinstance(found, list) or len(found) < 2:
        raise BadRow("has no list of choices")
    if len(found) > len(LETTERS):
        raise BadRow(f"has {len(found)} choices; at most {len(LETTERS)} are possible")
    choices = [_filled(str(one) if isinstance(one, int) else one, "choices", {}) for one in found]
    right = _right(value.get(where.get("completion", "answer")), choices)
    listed = "\n".join(f"{LETTERS[place]}. {one}" for place, one in enumerate(choices))
    return (
        {"role": "user", "content": f"{question}\n\n{listed}"},
        {"role": "assistant", "content": f"{LETTERS[right]}. {choices[right]}"},
    )


def _right(answer: Any, choices: list[str]) -> int:
    """The place of the right choice, given as a number from 0, a letter, or its text."""
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    letters = LETTERS[: len(choices)]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in letters:
        return letters.index(answer.strip().upper())
    is_number = isinstance(answer, int) and not isinstance(answer, bool)
    if is_number or (isinstance(answer, str) and answer.strip().isdecimal()):
        if 0 <= int(answer) < len(choices):
            return int(answer)
    raise BadRow(f"the answer {quoted(answer)} is none of the {len(choices)} choices")
