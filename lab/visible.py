"""Stored text as a terminal or a page may show it: nothing in it is invisible, nothing acts."""

from __future__ import annotations

import re
import unicodedata

HIDDEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")  # categories of Unicode
# letters and marks that draw nothing, although they count as printable
BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
# Persian and Indian words, and emoji of several parts, need a joiner between two of their own
OWN = "[^\x00-\u05ff\u2000-\u206f\ud800-\uf8ff\ufeff]"
JOINER = re.compile(f"(?<!{OWN})[\u200c\u200d]|[\u200c\u200d](?!{OWN})")


class _Numbers(dict[int, str | int]):
    """The replacement of each character; filled as characters occur."""

    def __missing__(self, code: int) -> str | int:
        char = chr(code)
        is_hidden = unicodedata.category(char) in HIDDEN or char in BLANK
        shown: str | int = number_of(char) if is_hidden and char not in "\n\t\u200c\u200d" else code
        self[code] = shown
        return shown


_numbers = _Numbers()


def visible(text: object) -> str:
    """`text` with control characters, marks that turn the writing direction and all else that
    draws nothing as their numbers: U+202E becomes ⟨202e⟩. Line ends become a line feed; line
    feeds and tabs stay."""
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    shown = JOINER.sub(lambda match: number_of(match[0]), shown)
    return shown.replace("\r\n", "\n").replace("\r", "\n").translate(_numbers)


def on_one_line(text: object) -> str:
    """As `visible`, with every run of white space as one blank."""
    return " ".join(visible(text).split())


def number_of(char: str) -> str:
    return f"⟨{ord(char):04x}⟩"
