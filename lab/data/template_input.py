"""How a chat is given to its template: under the names and in the forms that the template reads.

One thing goes by several names (a thought is reasoning_content, reasoning or thinking), and in
several forms (arguments of a tool call as an object or as JSON). What a template cannot read as it
is, is given to it in the next form that it can.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from lab.data import sandbox

Message = dict[str, Any]
OWN_KEYS = ("learn",)  # of a message: read by the lab, never by a template
# One thing under three names: a template reads one of them, a file may bring another.
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
TEMPLATE_THOUGHTS = (*THOUGHT_KEYS, "thought")  # under which a template may read it
THINKING_PART = re.compile(r"""type['"\])]*\s*==\s*['"]thinking['"]""")  # of a list of contents


def text_of(
    write: Callable[[list[Message], list[Any] | None], str],
    source: str,
    messages: list[Message],
    tools: list[Any] | None,
) -> str:
    """What the template of this `source` makes of a chat; `write` renders messages and tools.
    Raises what the template raises."""
    shown = [_for_template(message, source) for message in messages]
    text = _first_written(write, shown, tools)
    if THINKING_PART.search(source) and not _holds_thoughts(text, messages):
        try:
            in_parts = write(_with_thinking_parts(shown), tools)
        except Exception:  # it takes no lists of contents after all
            return text
        return in_parts if _holds_thoughts(in_parts, messages) else text
    return text


def _first_written(write: Any, messages: list[Message], tools: list[Any] | None) -> str:
    """The text by the first way of giving a template tools and arguments that it can read."""
    ways = [(messages, tools)]
    if tools is None:
        ways.append((messages, []))  # it goes over `tools` without asking whether there are any
    arguments = list(_arguments(messages))
    if arguments:
        ways.append((_with_json_arguments(messages), tools))
    python_like, failures = "", list[Exception]()
    for shown, shown_tools in ways:
        try:
            text: str = write(shown, shown_tools)
        except sandbox.TooMuch:
            raise
        except Exception as error:  # a template is a stranger's program: it can fail in any way
            failures.append(error)
            continue
        if shown is messages and any(_is_python(call, text) for call in arguments):
            python_like = text  # JSON is the better form, if it can be given
            continue
        return text
    if not python_like:
        raise failures[0]
    return python_like


def _is_python(arguments: dict[str, Any], text: str) -> bool:
    """Whether a text holds the arguments of a call alone as Python writes an object."""
    written = str(arguments)
    return written in text and f"'arguments': {written}" not in text


def _holds_thoughts(text: str, messages: list[Message]) -> bool:
    """Whether all thoughts are written, and none of them as Python writes an object."""
    thoughts = [thought_of(message).strip() for message in messages]
    return all(thought in text for thought in thoughts) and "'type': 'thinking'" not in text


def _with_thinking_parts(messages: list[Message]) -> list[Message]:
    """The messages with their thoughts as the first part of a list of contents."""
    changed = []
    for message in messages:
        thought, content = thought_of(message), message.get("content")
        if thought and isinstance(content, str):
            spoken = [{"type": "text", "text": content}] if content else []
            message = {**message, "content": [{"type": "thinking", "thinking": thought}, *spoken]}
        changed.append(message)
    return changed


def _arguments(messages: list[Message]) -> Iterator[dict[str, Any]]:
    """The arguments of tool calls that are objects, and not empty."""
    for message in messages:
        for call in message.get("tool_calls") or []:
            function = call.get("function") if isinstance(call, dict) else None
            arguments = function.get("arguments") if isinstance(function, dict) else None
            if isinstance(arguments, dict) and arguments:
                yield arguments


def _with_json_arguments(messages: list[Message]) -> list[Message]:
    """The messages with the arguments of tool calls as JSON, which some templates ask for."""
    changed = copy.deepcopy(messages)
    for message in changed:
        for call in message.get("tool_calls") or []:
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return changed


def _for_template(message: Message, source: str) -> Message:
    """The message as the template reads it: without the lab's own keys, and with its thought under
    the name that the template knows."""
    shown = {key: value for key, value in message.items() if key not in OWN_KEYS}
    thought = thought_of(message)
    if thought:
        for key in TEMPLATE_THOUGHTS:
            if key in source:
                shown.setdefault(key, thought)
    if "tool_plan" in source and shown.get("tool_calls") and shown.get("content"):
        shown.setdefault("tool_plan", shown["content"])  # what is said before a call
    return shown


def thought_of(message: Message) -> str:
    """The thought that stands beside the content of a message, "" if there is none."""
    values = (message.get(key) for key in THOUGHT_KEYS)
    return next((value for value in values if isinstance(value, str) and value.strip()), "")
