"""Whether a text holds the words of a message, and where; blanks do not count.

Templates trim, indent and break lines; what they must not do is lose or change words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from lab.data import template_input
from lab.data.template_input import Message

THINK = re.compile(r"</?think>")
BLANKS = re.compile(r"\s+")
TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")  # as the tags around thoughts are written
# What stands in front of a thought and behind it, in the templates that have a form for it.
THOUGHT_TAGS = (
    ("<think>\n", "\n</think>\n\n"),
    ("<|channel>thought\n", "\n<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<seed:think>", "</seed:think>"),
    ("<thinking>\n", "\n</thinking>\n\n"),
    ("[THINK]", "[/THINK]"),
)


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
    if squeezed(template_input.thought_of(message)) not in whole:
        missing.add(next(key for key in template_input.THOUGHT_KEYS if message.get(key)))
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
    return [text for text in (template_input.thought_of(message), *words) if text.strip()]


def thought_tags(text: str) -> tuple[str, str] | None:
    """The tags for thoughts that a template knows, by its text; None if it knows none."""
    for opening, closing in THOUGHT_TAGS:
        if opening.strip() in text or closing.strip() in text:
            return opening, closing
    return None


def leading_thought(message: Message) -> str:
    """The thought of a message that stands before all its words; "" where it has none there."""
    content = message.get("content")
    parts = thoughts(content) if isinstance(content, str) else []
    spoken = [(is_thought, text.strip()) for is_thought, text in parts if text.strip()]
    if beside := template_input.thought_of(message).strip():
        return "" if any(is_thought for is_thought, _ in spoken) else beside
    is_led = spoken[:1] and spoken[0][0] and not any(is_thought for is_thought, _ in spoken[1:])
    return spoken[0][1] if is_led else ""


def without_thought(behind: str, tags: tuple[str, str]) -> str | None:
    """What is behind a prompt, without an empty thought in front; None where there is another."""
    opening, closing = (re.escape(tag.strip()) for tag in tags)
    rest = re.sub(rf"\A\s*(?:{opening})?\s*{closing}\s*", "", behind)
    return None if re.search(f"{opening}|{closing}", rest) else rest


def empty_thought(prompt: str) -> str:
    """The empty thought with which a prompt ends, "" if it ends with none."""
    for opening, closing in THOUGHT_TAGS:
        tags = re.escape(opening.strip()), re.escape(closing.strip())
        if match := re.search(r"{}\s*{}\s*\Z".format(*tags), prompt):
            return match[0]
    return ""


def behind_a_thought(opening: str, text: str) -> str | None:
    """What of `text` belongs behind a prompt that goes on with `opening` where the text does not:
    an empty thought, or the opening of one that the text closes. None where it is neither."""
    tags, begun = TAG.findall(opening), TAG.match(text.lstrip())
    if not tags or (opening.lstrip() and not TAG.match(opening.lstrip())):
        return None
    first, last = tags[0], tags[-1]
    if len(tags) > 1 and first != last and _kind(first) == _kind(last):
        return text.lstrip().removeprefix(last) if begun and begun[0] == last else text
    if len(tags) == 1 and begun and begun[0] != first and _kind(begun[0]) == _kind(first):
        return text
    return None


def _kind(tag: str) -> str:
    """What an opening and a closing tag have in common: think, of <think> and </think>."""
    return re.sub(r"start|end|[^a-z]", "", tag.lower())


def are_in_order(contents: list[Any], text: str) -> bool:
    """Whether a text holds these words one behind the other; blanks do not count."""
    whole, cursor = squeezed(text), 0
    for content in contents:
        positions = [
            (at, len(form))
            for form in map(squeezed, written_forms(content if isinstance(content, str) else ""))
            if (at := whole.find(form, cursor)) >= 0
        ]
        if not positions:
            return False
        cursor = sum(min(positions))
    return True


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
    return any(form in text or squeezed(form) in whole for form in written_forms(leaf))


def written_forms(words: str) -> tuple[str, ...]:
    """How a template may write words: as they are, or as in JSON."""
    return words, json.dumps(words)[1:-1], json.dumps(words, ensure_ascii=False)[1:-1]


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


def shared_length(first: str, second: str) -> int:
    """The number of characters with which both texts begin."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low
