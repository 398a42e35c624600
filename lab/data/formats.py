"""The formats of records, and how they are told by the names of columns.

A format says which columns hold what: the prompt, the completion, the text, the messages. `columns`
of the spec names others; a name with dots goes into nested values ("instances.0.output"). Names are
compared without capitals where they do not fit as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lab.data import conversations
from lab.data.choices import choice_columns
from lab.data.conversations import TALKS, Message
from lab.data.lines import InvalidRow
from lab.data.placeholders import SURROGATE
from lab.data.record_keys import folded, mapping_offer
from lab.data.turns import is_talk
from lab.schema import quote, quoted

__all__ = ["SURROGATE", "Example", "ReadOptions", "columns_of", "detect", "shortened"]

PROMPTS = ("prompt", "instruction", "description", "query", "input", "request", "question")
COMPLETIONS = ("completion", "response", "output", "command", "target", "reply")
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "systemInstruction")
MORE_TALKS = ("dialog", "dialogue", "turns", "chat", "contents")  # if they hold turns with roles
TOOLS = ("tools", "functions")
BESIDE: dict[str, tuple[str, ...]] = {
    "input": ("input",), "system": SYSTEM, "history": ("history",), "tools": TOOLS,
    "thought": (),  # only where data.columns names it: not every template has a place for thoughts
}  # fmt: skip
CHOSEN = ("chosen", "preferred_output")
# Which columns a format takes, unless `columns` names others. The first that a row has is used.
FORMATS: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"messages": (*TALKS, *MORE_TALKS), "system": SYSTEM, "tools": TOOLS},
    "alpaca": {"prompt": ("instruction",), "completion": ("output",), **BESIDE},
    "prompt-completion": {"prompt": PROMPTS, "completion": COMPLETIONS, **BESIDE},
    "multiple-choice": {
        "prompt": ("question",),
        "choices": ("choices", "options"),
        "completion": ("answer",),
        "system": SYSTEM,
    },
    "question-answer": {"prompt": ("question",), "completion": ("answer",), **BESIDE},
    "labels": {
        "prompt": ("text", "sentence", "message"),
        "completion": ("label", "category", "intent", "class", "sentiment"),
        "system": SYSTEM,
    },
    "preference": {"messages": TALKS, "prompt": PROMPTS, "completion": CHOSEN, **BESIDE},
    "tree": {"messages": ("prompt", "tree")},
    "text": {"text": ("text", "content")},
}
ADDED = {
    "input",
    "system",
    "history",
    "tools",
    "thought",
}  # parts that leave open what the format is
NAMED = 12  # columns that a message lists
FIRST_WORDS = 100  # characters that are left of each turn
PREFERENCE = (
    "is a preference (chosen and rejected), and comparisons are not learned; set data.format to "
    "preference{} to learn the chosen answers"
)
INSIDE = ' and data.columns to {"messages": "input.messages"}'


@dataclass(frozen=True)
class Example:
    """One row. `row` counts from 1 in its file. Exactly one of messages and text is set.

    Messages are as `lab.data.conversations` describes them, `tools` what the assistant may call.
    `goes_on` says that the text is a piece of one that the next row continues. `notes` are what a
    person should know of the row: keys that are not used, answers that are not learned.
    """

    row: int
    messages: tuple[Message, ...] = ()
    text: str = ""
    goes_on: bool = False
    tools: list[dict[str, Any]] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadOptions:
    """How the rows of a file become examples. `ignored` are columns that need no note;
    `learns_all` says that the loss counts every token, which no mark of a row can be part of."""

    form: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)
    on_invalid_row: str = "refuse"
    limit: int | None = None
    ignored: tuple[str, ...] = ()
    learns_all: bool = False


def length(example: Example) -> int:
    """The characters of an example."""
    return len(example.text) + sum(map(conversations.characters, example.messages))


def shortened(example: Example, most: int) -> Example:
    """The beginning of an example: about `most` characters, and never less than its first turns.
    What reads a sample looks at this much of a row; training takes all."""
    if length(example) <= most and len(example.messages) <= most:
        return example
    if not example.messages:
        return replace(example, text=example.text[:most])
    turns: list[Message] = []
    room = most
    for turn in example.messages:
        short = conversations.shortened(turn, max(room, FIRST_WORDS))
        turns.append(short)
        room -= conversations.characters(short) + 1
        if room <= 0 and turn["role"] == "assistant":
            break
    return replace(example, messages=tuple(turns))


def detect(value: Any) -> str:
    """The format of a record by its keys. Raises InvalidRow if it is none that the lab knows."""
    if isinstance(value, str):
        return "text"
    if is_talk(value):
        return "messages"
    if not isinstance(value, dict):
        raise InvalidRow(f"is {quoted(value)}, not an object")
    keys = {folded(key) for key in value}
    if {"chosen", "rejected"} <= keys or {"preferred_output", "non_preferred_output"} <= keys:
        asked_with = value.get("input")
        is_inside = isinstance(asked_with, dict) and "messages" in asked_with
        raise InvalidRow(PREFERENCE.format(INSIDE if is_inside else ""))
    if keys & set(TALKS) or any(is_talk(v) for k, v in value.items() if folded(k) in MORE_TALKS):
        return "messages"
    if isinstance(value.get("prompt"), dict) and "replies" in value["prompt"]:
        return "tree"
    if choice_columns(value) and {"question", "answer"} <= keys:
        return "multiple-choice"
    if {"instruction", "output"} <= keys:
        return "alpaca"
    for name in ("question-answer", "prompt-completion", "labels"):
        parts = FORMATS[name]
        if all(keys & set(parts[part]) for part in ("prompt", "completion")):
            return name
    if ("role" in keys and keys & {"content", "text"}) or {"from", "value"} <= keys:
        raise InvalidRow("is one message; put the messages of a conversation into a list: messages")
    if keys & {"text", "content"}:
        return "text"
    names = ", ".join(quote(key) for key in sorted(map(str, value))[:NAMED]) or "none"
    if len(keys) > NAMED:
        names += f" and {len(keys) - NAMED} more"
    offer = mapping_offer(value, PROMPTS)
    raise InvalidRow(
        f"keys {names}; expected messages, text, instruction and output, prompt and completion, "
        "question and answer, or text and label; " + (offer or "name others in data.columns")
    )


def format_by_columns(columns: dict[str, str]) -> str:
    """The format that a mapping means, where it is left open."""
    if "messages" in columns:
        return "messages"
    if "choices" in columns:
        return "multiple-choice"
    if "text" in columns:
        return "text"
    return "alpaca" if "input" in columns else "prompt-completion"


def columns_of(value: Any, form: str, columns: dict[str, str] | None = None) -> dict[str, str]:
    """{part: column} that a record of this format is read with; shown so that it can be edited."""
    if not isinstance(value, dict):
        return {}
    names: dict[str, Any] = {}
    for key in value:
        names.setdefault(folded(key), key)
    where: dict[str, str] = {}
    for part, known in FORMATS[form].items():
        name = (columns or {}).get(part) or next((name for name in known if name in value), "")
        name = name or next((str(names[name]) for name in known if name in names), "")
        if not name and part == "choices":
            name = ", ".join(choice_columns(value))
        if name and not (part == "input" and name == where.get("prompt")):
            where[part] = name
    return where
