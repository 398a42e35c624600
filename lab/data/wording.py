"""Whether a text holds the words of a message, and where; blanks do not count.

Templates trim, indent and break lines; what they must not do is lose or change words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from lab.data import rendering
from lab.data.rendering import Message

THINK = re.compile(r"</?think>")
BLANKS = re.compile(r"\s+")


def lost(message: Message, text: str) -> frozenset[str]:
    """The keys of an assistant's message of which something is missing in `text`; `thought` for
    one that stands in the content. Blanks do not count."""
    missing = set()
    whole = squeezed(text)
    content = message.get("content")
    if isinstance(content, str):
        for is_thought, part in thoughts(content):
            if squeezed(part) not in whole:
                missing.add("thought" if is_thought else "content")
    if squeezed(rendering.thought_of(message)) not in whole:
        missing.add(next(key for key in rendering.THOUGHT_KEYS if message.get(key)))
    if not all(is_written(leaf, text, whole) for leaf in _leaves(message.get("tool_calls"))):
        missing.add("tool_calls")
    return frozenset(missing)


def thoughts(content: str) -> list[tuple[bool, str]]:
    """(whether it is thought, text) of each part of a content with <think> tags."""
    tags = THINK.findall(content)
    texts = THINK.split(content)
    parts = []
    for i, text in enumerate(texts):
        is_closed = i < len(tags) and tags[i] == "</think>"
        parts.append((is_closed or (i > 0 and tags[i - 1] == "<think>"), text))
    return parts


def parts_of(message: Message) -> list[str]:
    """The words of a message in the order in which they are written."""
    content = message.get("content")
    words = [text for _, text in thoughts(content)] if isinstance(content, str) else []
    return [text for text in (rendering.thought_of(message), *words) if text.strip()]


def _leaves(value: Any) -> Iterator[str]:
    """The names and texts that tool calls hold."""
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "arguments":
                yield from _argument_leaves(item)
            elif key == "name" and isinstance(item, str):
                yield item
            elif isinstance(item, (dict, list)):
                yield from _leaves(item)


def _argument_leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            yield value
            return
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _argument_leaves(item if not isinstance(item, str) else [item])
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, str):
                yield item
            else:
                yield from _argument_leaves(item)


def is_written(leaf: str, text: str, whole: str) -> bool:
    """Whether `text`, which is `whole` without blanks, holds the leaf as it is or as JSON."""
    forms = (leaf, json.dumps(leaf)[1:-1], json.dumps(leaf, ensure_ascii=False)[1:-1])
    return any(form in text or squeezed(form) in whole for form in forms)


def squeezed(text: str) -> str:
    """The text without blanks."""
    return BLANKS.sub("", text)


def position(text: str, parts: list[str], start: int) -> int:
    """Where the first of the words stands behind `start`, -1 if nowhere; blanks do not count."""
    if not parts:
        return -1
    return _find(text, parts[0], start)[0]


def end_position(text: str, words: str) -> int:
    """Where the last occurrence of the words ends, -1 if there is none."""
    start, end = -1, -1
    while True:
        start, following = _find(text, words, start + 1)
        if start < 0 or not words.strip():
            return end
        end = following


def _find(text: str, words: str, start: int) -> tuple[int, int]:
    """(start, end) of the words behind `start`, (-1, -1) if they are not there."""
    pattern = r"\s*".join(map(re.escape, words.split()))
    match = re.compile(pattern).search(text, start)
    return (match.start(), match.end()) if match else (-1, -1)


def shared_length(one: str, other: str) -> int:
    """The number of characters with which both texts begin."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
