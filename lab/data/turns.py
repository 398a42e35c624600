"""The forms in which files hold the turns of a conversation, made into a list of turns with roles.

Besides lists of objects with role and content: JSON or Python's own form in a text, a text with
headings such as "Human:", pairs of a user's and an assistant's words, texts in turn, and messages
whose parts are calls of tools and their results.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from lab.data.lines import InvalidRow
from lab.schema import quoted

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "gpt4": "assistant",
    "gpt-4": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "function_call": "assistant",  # its content is the call
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text", "parts")
IN_TURN = "turns without roles are read as user and assistant in turn"
HEADING = re.compile(
    r"(?:\A|\n|(?=###))[ \t]*(?:###[ \t]*)?"
    r"(Human|User|Assistant|System|HUMAN|USER|ASSISTANT|SYSTEM)"
    r"[ \t]*:"
)
MAX_LITERAL_CHARS = 1_000_000  # characters of a text that is read as Python writes a list


def turns_of(value: Any, name: str, notes: list[str]) -> Any:
    """A list of turns, of whatever form; what is none of them is given back as it is. `notes` gets
    what was read into it. Raises InvalidRow."""
    if isinstance(value, str):
        value = dialogue(value) or from_text(value, name)
    if not isinstance(value, list):
        return value
    if len(value) > 1 and all(isinstance(turn, str) for turn in value):
        notes.append(IN_TURN)
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": text} for i, text in enumerate(value)]
    return [part for turn in value for part in _parts_of(turn)]


def dialogue(text: str) -> list[dict[str, str]] | None:
    """The turns of a text with headings ("\\n\\nHuman: … \\n\\nAssistant: …"); None if it has none
    of both roles, or words in front of the first."""
    headings = list(HEADING.finditer(text))
    roles = [ROLES[match[1].lower()] for match in headings]
    if not {"user", "assistant"} <= set(roles) or text[: headings[0].start()].strip():
        return None
    ends = [match.start() for match in headings[1:]] + [len(text)]
    turns = [
        {"role": role, "content": text[match.end() : end].strip()}
        for role, match, end in zip(roles, headings, ends, strict=True)
    ]
    return turns if turns[-1]["content"] else turns[:-1]  # a prompt ends with "Assistant:"


def is_talk(value: Any) -> bool:
    """Whether this is a list of turns with roles."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and not set(ROLE_KEYS).isdisjoint(turn) for turn in value)
    )


def from_text(value: Any, name: str) -> Any:
    """A list or an object, which may be written in a text: as JSON, or as Python writes it. Raises
    InvalidRow."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    if value.lstrip()[:1] in ("[", "{") and len(value) <= MAX_LITERAL_CHARS:
        try:
            written = ast.literal_eval(value.strip())  # values only: nothing is run
            return json.loads(json.dumps(written))
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            pass
    raise InvalidRow(f"'{name}' is {quoted(value)}, which is not JSON") from None


def _parts_of(turn: Any) -> Iterator[Any]:
    """The turns that one entry of a list holds."""
    if not isinstance(turn, dict):
        yield turn
    elif set(ROLE_KEYS).isdisjoint(turn) and _is_pair(turn):
        for role, content in turn.items():
            yield {"role": role, "content": content}
    else:
        yield from _with_results(turn)


def _is_pair(turn: dict[Any, Any]) -> bool:
    """Whether the keys are roles: {"human": …, "assistant": …}."""
    return bool(turn) and all(isinstance(k, str) and k.strip().lower() in ROLES for k in turn)


def _with_results(turn: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
    """A turn whose parts may be calls of tools, or their results, which become turns of a tool."""
    content = turn.get("content")
    parts = content if isinstance(content, list) else []
    kinds = {part.get("type") for part in parts if isinstance(part, dict)}
    if kinds.isdisjoint(("tool_use", "tool_result")):
        yield turn
        return
    rest: list[Any] = []
    calls: list[Any] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else ""
        if kind == "tool_use":
            calls.append(
                {"id": part.get("id"), "name": part.get("name"), "input": part.get("input")}
            )
        elif kind == "tool_result":
            link = {"tool_call_id": part["tool_use_id"]} if part.get("tool_use_id") else {}
            yield {"role": "tool", "content": part.get("content"), **link}
        else:
            rest.append(part)
    if rest or calls:
        yield {**turn, "content": rest, **({"tool_calls": calls} if calls else {})}
