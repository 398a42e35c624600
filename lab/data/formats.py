"""From the value of a row to an example, whatever the shape of the row.

A shape says which columns hold what: the prompt, the completion, the text, the messages. `columns`
of the spec names others; a name with dots goes into nested values ("instances.0.output").
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

from lab.data.readers import BadRow
from lab.schema import quote, quoted

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
FORMATS: dict[str, dict[str, tuple[str, ...]]] = {
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
FIRST_WORDS = 100  # characters that are left of each turn
NAMED = 12  # columns that a message lists
LONGEST_ROW = 32_000_000  # characters of a row with its slots filled
SURROGATE = re.compile("[\ud800-\udfff]")
SLOT = re.compile(r"\{\{([^{}]*)\}\}")


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
class ReadOptions:
    """How the rows of a file become examples."""

    form: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)
    bad_rows: str = "refuse"
    limit: int | None = None


def length(example: Example) -> int:
    """The characters of an example."""
    return len(example.text) + sum(len(turn["content"]) for turn in example.messages)


def shortened(example: Example, most: int) -> Example:
    """The beginning of an example: about `most` characters, and never less than its first turns.
    What reads a sample looks at this much of a row; training takes all."""
    if length(example) <= most and len(example.messages) <= most:
        return example
    if not example.messages:
        return replace(example, text=example.text[:most])
    turns: list[dict[str, str]] = []
    room = most
    for turn in example.messages:
        content = turn["content"][: max(room, FIRST_WORDS)]
        turns.append({**turn, "content": content})
        room -= len(content) + 1
        if room <= 0 and turn["role"] == "assistant":
            break
    return replace(example, messages=tuple(turns))


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
        parts = FORMATS[shape]
        if all(keys & set(parts[part]) for part in ("prompt", "completion")):
            return shape
    if keys & {"text", "content"}:
        return "text"
    names = ", ".join(quote(key) for key in sorted(map(str, keys))[:NAMED]) or "none"
    if len(keys) > NAMED:
        names += f" and {len(keys) - NAMED} more"
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
    for part, names in FORMATS[shape].items():
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


def example(row: int, value: Any, reading: ReadOptions) -> Example:
    """The example of a row. Raises BadRow."""
    shape = reading.form
    if shape == "auto":
        shape = shape_by_columns(reading.columns) if reading.columns else detect(value)
    if shape == "text" and isinstance(value, str) and not reading.columns:
        value = {"text": value}  # a list of texts
    if not isinstance(value, dict):
        raise BadRow(f"is {quoted(value)}, not an object")
    where = columns_of(value, shape, reading.columns)
    fill = Slots(reading.slots)
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
    if shape == "labels" and not isinstance(said, bool):
        said = _text_of(said)  # a class by number
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
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise BadRow(f"'replies' is {quoted(replies)}, not a list")
        usable = [one for one in replies if isinstance(one, dict) and not one.get("deleted")]
        node = min(usable, key=_rank) if usable else None
    while len(path) > 1 and ROLES.get(str(path[-1]["role"])) != "assistant":
        path.pop()
    return path


def _rank(reply: dict[str, Any]) -> float:
    """The place of a reply among its siblings, 0 the best; those without one come last."""
    rank = reply.get("rank")
    if isinstance(rank, bool) or not isinstance(rank, (int, float)) or rank != rank:
        return math.inf
    return float(max(-1e300, min(rank, 1e300)))  # an integer may have thousands of digits


def _named(where: dict[str, str], part: str, shape: str) -> str:
    return where.get(part) or FORMATS[shape][part][0]


def _at(value: dict[str, Any], where: dict[str, str], part: str, shape: str) -> Any:
    """What stands under a column, or deeper where its name has dots. Raises BadRow."""
    name = _named(where, part, shape)
    if name in value:
        return value[name]
    found: Any = value
    for key in name.split("."):
        if isinstance(found, list) and _number(key) < len(found):
            found = found[_number(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            raise BadRow(f"has no '{quote(name)}'")
    return found


def _number(text: str) -> int:
    """The whole number that a short text spells; far above any count for other texts."""
    return int(text) if text.isdecimal() and len(text) <= 9 else 10**9


class Slots:
    """The texts of {{slots}}, for one row: each slot is filled once, and what fills it stays as it
    is. The row as a whole stays below LONGEST_ROW characters."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts
        self.room = LONGEST_ROW

    def fill(self, text: str) -> str:
        """`text` with its slots filled. Raises BadRow if the row grows too long."""
        if not self.texts or "{{" not in text:
            return text
        names = [name for name in SLOT.findall(text) if name in self.texts]
        self.room -= len(text) + sum(len(self.texts[name]) for name in names)
        if self.room < 0:
            raise BadRow(f"is longer than {LONGEST_ROW:,} characters with its slots filled")
        return SLOT.sub(lambda match: self.texts.get(match[1], match[0]), text)


def _filled(text: Any, name: str, slots: Slots) -> str:
    """Text with its {{slots}} filled. Raises BadRow for what is no text."""
    if isinstance(text, BadRow):  # a cell that could not be read
        raise BadRow(f"'{quote(name)}' {text}")
    if not isinstance(text, str):
        raise BadRow(f"'{quote(name)}' is {quoted(text)}, not text")
    filled = slots.fill(text)
    if not filled or filled.isspace():
        slot = " once its slots are filled" if text.strip() else ""
        raise BadRow(f"'{quote(name)}' has no text{slot}")
    if "\0" in filled:
        raise BadRow(f"'{quote(name)}' holds a NUL character")
    if not filled.isascii() and SURROGATE.search(filled):
        raise BadRow(f"'{quote(name)}' holds half of a Unicode pair")
    return filled


def _turns(turns: Any, slots: Slots) -> tuple[dict[str, str], ...]:
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


def _text_of(value: Any) -> Any:
    """A whole number as text; other values as they are. Raises BadRow for thousands of digits."""
    if not isinstance(value, int):
        return value
    try:
        return str(value)
    except ValueError as error:
        raise BadRow(f"holds a number that is too long ({error})") from None


def _choice(
    question: str, value: dict[str, Any], where: dict[str, str]
) -> tuple[dict[str, str], ...]:
    """A question with lettered choices, and the right one with its letter."""
    names = [name.strip() for name in where.get("choices", "").split(",") if name.strip()]
    found = value.get(names[0]) if len(names) == 1 else [value.get(name) for name in names]
    if isinstance(found, BadRow):
        raise BadRow(f"'{quote(names[0])}' {found}")
    if not isinstance(found, list) or len(found) < 2:
        raise BadRow("has no list of choices")
    if len(found) > len(LETTERS):
        raise BadRow(f"has {len(found)} choices; at most {len(LETTERS)} are possible")
    none = Slots({})
    choices = [_filled(_text_of(one), "choices", none) for one in found]
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
    number = answer if is_number else _number(answer.strip()) if isinstance(answer, str) else -1
    if 0 <= number < len(choices):
        return int(number)
    if isinstance(answer, BadRow):
        raise BadRow(f"the answer {answer}")
    raise BadRow(f"the answer {quoted(answer)} is none of the {len(choices)} choices")
