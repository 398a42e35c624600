"""Questions with choices, of which one is right."""

from __future__ import annotations

import math
from typing import Any

from lab.data.lines import InvalidRow
from lab.data.placeholders import Slots, filled_text
from lab.formatting import quantity
from lab.schema import quote, quoted

LETTERS = "ABCDEFGHIJ"


def choice_columns(value: dict[str, Any]) -> list[str]:
    """The columns of the choices: one list, or choice0, choice1 … and A, B, C …"""
    for name in ("choices", "options"):
        if isinstance(value.get(name), list) or _labelled(value.get(name)):
            return [name]
    for names in (
        [f"choice{index}" for index in range(11)],
        [f"choice{index}" for index in range(1, 11)],
        list(LETTERS),
    ):
        present = [name for name in names if name in value]
        if len(present) > 1:
            return present
    return []


def _labelled(value: Any) -> bool:
    """Whether these are choices as {"text": [...], "label": [...]}."""
    return isinstance(value, dict) and all(
        isinstance(value.get(key), list) for key in ("text", "label")
    )


def lettered(choices: Any, answer: Any, name: str) -> tuple[str, str]:
    """(the choices with their letters, the right one with its letter). Raises InvalidRow."""
    if isinstance(choices, InvalidRow):
        raise InvalidRow(f"'{quote(name)}' {choices}")
    labels: list[Any] = []
    if _labelled(choices):
        choices, labels = choices["text"], choices["label"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise InvalidRow("has no list of choices")
    if len(choices) > len(LETTERS):
        raise InvalidRow(
            f"has {quantity(len(choices), 'choice')}; at most {len(LETTERS)} are possible"
        )
    none = Slots({})
    texts = [filled_text(number_as_text(choice), "choices", none) for choice in choices]
    right = labels.index(answer) if answer in labels else _right(answer, texts)
    if right >= len(texts):
        raise InvalidRow(
            f"the answer {quoted(answer)} is none of the {quantity(len(texts), 'choice')}"
        )
    listed = "\n".join(f"{LETTERS[index]}. {text}" for index, text in enumerate(texts))
    return listed, f"{LETTERS[right]}. {texts[right]}"


def number_as_text(value: Any) -> Any:
    """A number as text; other values as they are. Raises InvalidRow for thousands of digits."""
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if not is_number:
        return value
    try:
        return str(value)
    except ValueError as error:
        raise InvalidRow(f"holds a number that is too long ({error})") from None


def _right(answer: Any, choices: list[str]) -> int:
    """The place of the right choice, given as a number from 0, a letter, or its text."""
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    letters = LETTERS[: len(choices)]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in letters:
        return letters.index(answer.strip().upper())
    is_number = isinstance(answer, int) and not isinstance(answer, bool)
    text = answer.strip() if isinstance(answer, str) else ""
    index = answer if is_number else int(text) if text.isdecimal() and len(text) <= 9 else -1
    if 0 <= index < len(choices):
        return int(index)
    if isinstance(answer, InvalidRow):
        raise InvalidRow(f"the answer {answer}")
    raise InvalidRow(
        f"the answer {quoted(answer)} is none of the {quantity(len(choices), 'choice')}"
    )
