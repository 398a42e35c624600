"""Read a dataset file into examples, whatever the shape of its rows.

An example is either a chat (a list of {"role", "content"} messages) or plain text. Every row
that cannot be used is reported with file, row and reason; nothing is skipped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.schema import quoted, show

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
SHOWN = 5  # bad rows named in a message; the rest are counted


@dataclass(frozen=True)
class Example:
    """One row. `row` counts from 1 in its file. Exactly one of messages and text is set."""

    row: int
    messages: tuple[dict[str, str], ...] = ()
    text: str = ""


class BadRow(Exception):
    """Why one row cannot be used."""


def read_examples(path: Path, form: str = "auto", limit: int | None = None) -> list[Example]:
    """All usable examples of a file. Raises LabError that lists the rows that are not usable."""
    examples: list[Example] = []
    bad: list[str] = []
    count = 0
    for row, value in _values(path):
        if limit is not None and len(examples) >= limit:
            break
        try:
            if isinstance(value, BadRow):
                raise value
            examples.append(_example(row, value, form))
        except BadRow as reason:
            count += 1
            if len(bad) < SHOWN:
                bad.append(f"row {row}: {reason}")
    if count:
        more = f"; and {count - len(bad)} more" if count > len(bad) else ""
        raise LabError(
            f"{count} of {count + len(examples)} rows of '{show(str(path))}' cannot be used: "
            f"{'; '.join(bad)}{more}.",
            "Mend or remove these rows.",
        )
    if not examples:
        raise LabError(
            f"The dataset '{show(str(path))}' is empty.", "Give a file with at least one row."
        )
    return examples


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """(row number, parsed JSON or the BadRow that says why not) for each row of the file."""
    try:
        if path.suffix.lower() == ".json":
            value = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(value, list):
                raise LabError(
                    f"'{show(str(path))}' holds {show(value)}.", "Give a JSON list of rows."
                )
            yield from enumerate(value, start=1)
            return
        with path.open(encoding="utf-8-sig") as file:
            for row, line in enumerate(file, start=1):
                if line.strip():
                    yield row, _parse(line)
    except UnicodeDecodeError as error:
        raise LabError(
            f"'{show(str(path))}' is not UTF-8: byte 0x{error.object[error.start]:02x} "
            f"({error.reason}).",
            "Save the file as UTF-8.",
        ) from None
    except json.JSONDecodeError as error:
        raise LabError(
            f"'{show(str(path))}' is not JSON: {error.msg} in line {error.lineno}.",
            "Give a JSON list of rows, or JSONL with one object a line.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(f"'{show(str(path))}' cannot be read: {error}.", "Check the file.") from None


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return BadRow(f"not JSON ({error.msg} at column {error.colno})")
    except ValueError as error:  # a number of thousands of digits
        return BadRow(f"not JSON ({error})")
    except RecursionError:
        return BadRow("nested too deeply")


def detect(value: dict[str, Any]) -> str:
    """The format of a row by its keys. Raises BadRow if it is none that the lab knows."""
    keys = set(value)
    if keys & {"messages", "conversations"}:
        return "messages"
    if {"instruction", "output"} <= keys:
        return "alpaca"
    if {"prompt", "completion"} <= keys:
        return "prompt-completion"
    if {"question", "answer"} <= keys:
        return "question-answer"
    if {"text", "label"} <= keys:
        return "labels"
    if "text" in keys:
        return "text"
    names = ", ".join(show(key) for key in sorted(keys)) or "none"
    raise BadRow(
        f"keys {names}; expected messages, text, instruction and output, prompt and completion, "
        "question and answer, or text and label"
    )


def _example(row: int, value: Any, form: str) -> Example:
    if not isinstance(value, dict):
        raise BadRow(f"is {quoted(value)}, not an object")
    kind = detect(value) if form == "auto" else form
    if kind == "messages":
        return Example(row, messages=_messages(value))
    if kind == "text":
        return Example(row, text=_filled(value, "text"))
    asked, answered = {
        "alpaca": ("instruction", "output"),
        "prompt-completion": ("prompt", "completion"),
        "question-answer": ("question", "answer"),
        "labels": ("text", "label"),
    }[kind]
    question = _filled(value, asked)
    if kind == "alpaca" and value.get("input") not in (None, ""):
        question = f"{question}\n\n{_filled(value, 'input')}"
    return Example(row, messages=_pair(question, _filled(value, answered)))


def _pair(question: str, answer: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": question}, {"role": "assistant", "content": answer})


def _filled(value: dict[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise BadRow(f"'{key}' is {quoted(text)}, not text" if key in value else f"has no '{key}'")
    if not text.strip():
        raise BadRow(f"'{key}' has no text")
    return text


def _messages(value: dict[str, Any]) -> tuple[dict[str, str], ...]:
    turns = value.get("messages", value.get("conversations"))
    if not isinstance(turns, list) or not turns:
        raise BadRow("has no messages")
    messages = []
    for place, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise BadRow(f"message {place} is {quoted(turn)}, not an object")
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role not in ROLES:
            raise BadRow(f"message {place} has the role {quoted(role)}; use {', '.join(ROLES)}")
        key = "content" if "content" in turn else "value"
        try:
            content = _filled(turn, key)
        except BadRow as reason:
            raise BadRow(f"message {place} ({role}): {reason}") from None
        messages.append({"role": ROLES[role], "content": content})
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("has no assistant turn to learn from")
    return tuple(messages)
