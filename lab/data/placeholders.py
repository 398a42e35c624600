"""Texts of a record: checked, and with their {{slots}} filled."""

from __future__ import annotations

import re
from typing import Any

from lab.data.lines import InvalidRow
from lab.schema import quote, quoted

MAX_ROW_CHARS = 32_000_000  # characters of a row with its slots filled
SURROGATE = re.compile("[\ud800-\udfff]")
SLOT = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")


class Slots:
    """The texts of {{slots}}, for one row: each slot is filled once, and what fills it stays as it
    is. The row as a whole stays below MAX_ROW_CHARS characters."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = {name.strip(): text for name, text in texts.items()}
        self.room = MAX_ROW_CHARS

    def fill(self, text: str) -> str:
        """`text` with its slots filled. Raises InvalidRow if the row grows too long."""
        if not self.texts or "{{" not in text:
            return text
        names = [name for name in SLOT.findall(text) if name in self.texts]
        self.room -= len(text) + sum(len(self.texts[name]) for name in names)
        if self.room < 0:
            raise InvalidRow(f"is longer than {MAX_ROW_CHARS:,} characters with its slots filled")
        return SLOT.sub(lambda match: self.texts.get(match[1], match[0]), text)


def filled_text(text: Any, name: str, slots: Slots) -> str:
    """Text with its {{slots}} filled. Raises InvalidRow for what is no text."""
    if isinstance(text, InvalidRow):  # a cell that could not be read
        raise InvalidRow(f"'{quote(name)}' {text}")
    if not isinstance(text, str):
        raise InvalidRow(f"'{quote(name)}' is {quoted(text)}, not text")
    filled = slots.fill(text)
    if not filled or filled.isspace():
        slot = " once its slots are filled" if text.strip() else ""
        raise InvalidRow(f"'{quote(name)}' has no text{slot}")
    if "\0" in filled:
        raise InvalidRow(f"'{quote(name)}' holds a NUL character")
    if not filled.isascii() and SURROGATE.search(filled):
        raise InvalidRow(f"'{quote(name)}' holds half of a Unicode pair")
    return filled
