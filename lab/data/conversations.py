"""From the turns of a record to messages as chat templates read them.

A message holds role and content, and where the record has them: reasoning_content or thinking (a
thought before the answer), tool_calls, name and tool_call_id. `"learn": False` marks a turn that
the loss must not count. Keys that no template reads are noted by name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from lab.data.lines import InvalidRow
from lab.data.record_keys import is_empty, media_of, unused
from lab.data.turns import CONTENT_KEYS, ROLE_KEYS, ROLES, from_text, turns_of
from lab.schema import quote, quoted

Message = dict[str, Any]
Fill = Callable[[Any, str], str]  # (text, name of its key) → text; raises InvalidRow

CALLS = ("function_call", "tool_call")
TALKS = ("messages", "conversations", "conversation")
THOUGHTS = {"reasoning_content": "reasoning_content", "thinking": "thinking",
            "reasoning": "reasoning_content", "thought": "reasoning_content"}  # fmt: skip
ARGUMENTS = ("arguments", "parameters", "input")
LINKS = ("name", "tool_call_id")
# Marks that tell whether an answer is learned, as other tools write them.
COUNTED = ("weight", "train", "training", "trainable", "learn", "loss", "loss_mask")
NOT_COUNTED = ("masked",)
MARKED = "answers are marked as not to be learned"
MAX_DEPTH = 64  # lists and objects inside each other in tools and their calls
WORDS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False,
         "0.0": False, "no": False}  # fmt: skip


def messages_of(
    turns: Any, fill: Fill, notes: list[str], column: str = "messages"
) -> list[Message]:
    """The messages of the turns that stand in a column. Raises InvalidRow that names the turn."""
    turns = turns_of(turns, column, notes)
    if not isinstance(turns, list) or not turns:
        raise InvalidRow("has no messages")
    messages: list[Message] = []
    for position, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise InvalidRow(f"message {position} is {quoted(turn)}, not an object")
        name = next((turn[key] for key in ROLE_KEYS if key in turn), None)
        role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
        if role is None:
            raise InvalidRow(
                f"message {position} has the role {quoted(name)}; use {', '.join(ROLES)}"
            )
        try:
            messages.append(_message(turn, role, str(name).strip().lower(), fill, notes))
        except InvalidRow as reason:
            raise InvalidRow(f"message {position} ({name}): {reason}") from None
    return messages


def _message(turn: dict[str, Any], role: str, name: str, fill: Fill, notes: list[str]) -> Message:
    read = {*ROLE_KEYS, *CONTENT_KEYS, *LINKS}
    message: Message = {"role": role, "content": ""}
    if role == "assistant":
        read |= {*THOUGHTS, "tool_calls", "function_call"}
        _add_thought(turn, message, fill)
        _add_calls(turn, message, fill)
    key = next((key for key in CONTENT_KEYS if key in turn), "")
    content = turn.get(key)
    if name in CALLS:
        message["tool_calls"] = tool_calls(content, fill)
    elif role == "tool":
        message["content"] = _result(content, key or "content", fill)
    elif not key and "tool_calls" not in message:
        raise InvalidRow("has no 'content'")
    elif "tool_calls" not in message or not (is_empty(content) or _is_blank(content)):
        message["content"] = text_of_parts(content, key, message, fill, notes)
    for key in LINKS:
        if isinstance(turn.get(key), str) and turn[key]:
            message[key] = fill(turn[key], key)
    verdict = is_learned(turn, read)
    if verdict is False:
        message["learn"] = False
        if role == "assistant":
            notes.append(MARKED)
    elif verdict and role != "assistant" and "weight" not in turn:
        notes.append(f"turns of the {role} are marked as learned; only answers are")
    notes.extend(unused(turn, read, "a message"))
    return message


def _is_blank(content: Any) -> bool:
    return isinstance(content, str) and not content.strip()


def _add_thought(turn: dict[str, Any], message: Message, fill: Fill) -> None:
    for key, written in THOUGHTS.items():
        if not is_empty(turn.get(key)) and not _is_blank(turn[key]):
            message.setdefault(written, fill(turn[key], key))


def _add_calls(turn: dict[str, Any], message: Message, fill: Fill) -> None:
    for key in ("tool_calls", "function_call"):
        if not is_empty(turn.get(key)):
            message["tool_calls"] = tool_calls(turn[key], fill)


def text_of_parts(content: Any, key: str, message: Message, fill: Fill, notes: list[str]) -> str:
    """Content that is a text, or a list of parts of which those that are text are joined."""
    if not isinstance(content, list):
        return fill(content, key)
    texts: list[str] = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, dict) or not isinstance(kind, str):
            raise InvalidRow(f"'{key}' holds {quoted(part)}, not a part with text")
        elif media := media_of(kind):
            lost = f"the text is learned without its {media}"
            notes.append(f"'{quote(kind)}' in messages is not used: {lost}")
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "thinking" and isinstance(part.get("thinking"), str):
            message.setdefault("thinking", fill(part["thinking"], "thinking"))
        else:
            raise InvalidRow(f"'{key}' holds a part of type '{quote(kind)}', which has no text")
    return fill("".join(texts), key)


def _result(content: Any, key: str, fill: Fill) -> str:
    """What a tool gave back: text, or a value that is written as JSON; nothing is a result, too."""
    if is_empty(content) or _is_blank(content):
        return ""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, (str, InvalidRow)):
        content = json.dumps(checked(content, key), ensure_ascii=False)
    return fill(content, key)


def tool_calls(value: Any, fill: Fill) -> list[dict[str, Any]]:
    """Calls as templates read them: {"type": "function", "function": {"name", "arguments"}}, the
    arguments as an object. Raises InvalidRow."""
    calls = from_text(value, "tool_calls")
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not calls or not all(isinstance(c, dict) for c in calls):
        raise InvalidRow(f"'tool_calls' is {quoted(value)}, not a list of calls")
    written = []
    for call in checked(calls, "tool_calls"):
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRow(f"the tool call {quoted(call)} names no function")
        arguments: Any = next((function[key] for key in ARGUMENTS if key in function), {})
        if isinstance(arguments, str):
            with contextlib.suppress(InvalidRow):  # some tools take a plain text
                parsed = from_text(arguments, "arguments")
                arguments = parsed if isinstance(parsed, dict) else arguments
        checked(arguments, "arguments")
        written.append(
            {
                **({"id": call["id"]} if isinstance(call.get("id"), str) else {}),
                "type": "function",
                "function": {"name": function["name"], "arguments": arguments},
            }
        )
    return [_filled(call, fill) for call in written]


def tools_of(value: Any, fill: Fill) -> list[dict[str, Any]]:
    """The tools that a record offers, as templates read them. Raises InvalidRow."""
    tools = from_text(value, "tools")
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidRow(f"'tools' is {quoted(value)}, not a list of tools")
    return [
        _filled(tool if "function" in tool else {"type": "function", "function": tool}, fill)
        for tool in checked(tools, "tools")
    ]


def checked(value: Any, name: str) -> Any:
    """`value`, if a template can be given it. Raises InvalidRow."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for part in level if isinstance(part, (dict, list)) for item in
                 (part.values() if isinstance(part, dict) else part)]  # fmt: skip
        if not level:
            break
        if any(isinstance(item, InvalidRow) for item in level):
            raise InvalidRow(f"'{name}' holds what cannot be read")
    else:
        raise InvalidRow(f"'{name}' is nested too deeply")
    return value


def _filled(value: Any, fill: Fill) -> Any:
    """A copy with placeholders filled in every text that is not blank."""
    if isinstance(value, dict):
        return {key: _filled(item, fill) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, fill) for item in value]
    return fill(value, "tools") if isinstance(value, str) and value.strip() else value


def is_learned(record: dict[Any, Any], read: set[Any]) -> bool | None:
    """What the marks of a record or a turn say: True, False, or None where it has none. The keys
    that were understood are added to `read`."""
    verdicts = []
    for key in (*COUNTED, *NOT_COUNTED):
        if key not in record:
            continue
        verdict = truth(record[key])
        if verdict is None:
            continue  # noted by its name, as any key that is not used
        read.add(key)
        verdicts.append(verdict if key in COUNTED else not verdict)
    return all(verdicts) if verdicts else None


def truth(value: Any) -> bool | None:
    """True or False, also where it is written 1 or 0, in figures or words; None for the rest."""
    if isinstance(value, str):
        return WORDS.get(value.strip().lower())
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    return None


def pairs_of(history: Any, fill: Fill, notes: list[str]) -> list[Message]:
    """Earlier turns: pairs of question and answer, or turns with roles. Raises InvalidRow."""
    pairs = from_text(history, "history") if isinstance(history, str) else history
    if not isinstance(pairs, list):
        raise InvalidRow(f"'history' is {quoted(history)}, not a list of pairs")
    if pairs and all(isinstance(pair, dict) and set(pair) & set(ROLE_KEYS) for pair in pairs):
        return messages_of(pairs, fill, notes)
    messages: list[Message] = []
    for pair in pairs:
        texts = list(pair.values()) if isinstance(pair, dict) else pair
        if not isinstance(texts, list) or len(texts) != 2:
            raise InvalidRow(f"'history' holds {quoted(pair)}, not a pair of question and answer")
        for role, text in zip(("user", "assistant"), texts, strict=True):
            messages.append({"role": role, "content": fill(text, "history")})
    return messages


def words(message: Message) -> str:
    """All that is said in a message: its thought, its content and the calls."""
    thoughts = [message[key] for key in ("reasoning_content", "thinking") if key in message]
    calls = [json.dumps(message["tool_calls"])] if "tool_calls" in message else []
    return "\n".join([*thoughts, message["content"], *calls])


def characters(message: Message) -> int:
    """The characters of a message, with what it holds besides its content."""
    texts = [value for key, value in message.items() if isinstance(value, str) and key != "role"]
    calls = message.get("tool_calls")
    return sum(map(len, texts)) + (len(json.dumps(calls, default=str)) if calls else 0)


def shortened(message: Message, most: int) -> Message:
    """A message of which each text is cut behind `most` characters."""
    return {key: value if key == "role" else _cut(value, most) for key, value in message.items()}


def _cut(value: Any, most: int) -> Any:
    if isinstance(value, str):
        return value[:most]
    if isinstance(value, list):
        return [_cut(item, most) for item in value[:most]]
    if isinstance(value, dict):
        return {key: _cut(value[key], most) for key in list(value)[:most]}
    return value
