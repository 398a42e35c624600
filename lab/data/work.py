"""What one rendering of a chat template may do, counted before it is done."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import Any

from jinja2.utils import Namespace

STEPS = 500_000  # turns of loops, calls, outputs, of an empty chat
STEPS_A_CHARACTER = 2
SIZE = 1_000_000  # characters or entries of whatever a template makes
SIZE_A_CHARACTER = 8
SECONDS = 1.0  # of processor time: an honest rendering takes milliseconds
SECONDS_A_CHARACTER = 2e-6
CLOCK = 64  # steps between two looks at the clock
DIGITS = re.compile(r"\d+")
STAR = re.compile(r"%[^%a-zA-Z]*\*")


class TooMuch(Exception):
    """The template does more than rendering a chat can take."""


class Work:
    """What one rendering may still do. `characters` is the length of the chat."""

    def __init__(self, characters: int) -> None:
        self.steps = STEPS + STEPS_A_CHARACTER * characters
        self.size = SIZE + SIZE_A_CHARACTER * characters
        self.ends = time.thread_time() + SECONDS + SECONDS_A_CHARACTER * characters
        self.until_clock = CLOCK
        self._weights: dict[int, tuple[Any, int]] = {}

    def spend(self, size: int = 0) -> None:
        """Count a step that handles `size` characters or entries."""
        self.steps -= 1 + size // 256
        if self.steps < 0:
            raise TooMuch("it takes too many steps")
        self.until_clock -= 1 + size // 4096
        if self.until_clock < 0:
            self.until_clock = CLOCK
            if time.thread_time() > self.ends:
                raise TooMuch("it takes too long")

    def allow(self, size: int) -> None:
        """Raise TooMuch where a text or list of this size may not be made."""
        if size > self.size:
            raise TooMuch(f"it makes a text or list of more than {self.size:,} characters")
        self.spend(max(0, size))

    def weigh(self, value: Any) -> int:
        """About the characters that `value` has as text, each part as often as it stands there."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            return 1 + int(value).bit_length() // 3
        if isinstance(value, Namespace):
            return 1 + self._sum(value._Namespace__attrs.values())
        if isinstance(value, (KeysView, ValuesView)):
            return 1 + self._sum(value)
        if isinstance(value, ItemsView):
            return 1 + self._sum(itertools.chain.from_iterable(value))
        if not isinstance(value, (list, tuple, dict)):
            return 1
        known = self._weights.get(id(value))
        if known is None:
            parts = itertools.chain(value, value.values()) if isinstance(value, dict) else value
            known = (value, 1 + self._sum(parts))  # the value is held: its id stays its own
            self._weights[id(value)] = known
        return known[1]

    def _sum(self, parts: Iterable[Any]) -> int:
        total = 0
        for part in parts:
            self.spend()
            total += 1 + self.weigh(part)
            if total > self.size:
                raise TooMuch(f"it makes a text or list of more than {self.size:,} characters")
        return total

    def checked(self, value: Any) -> Any:
        """`value`, if its size is allowed."""
        if isinstance(value, (str, int, list, tuple, dict)):
            self.allow(self.weigh(value))
        return value


class _Current(threading.local):
    work: Work | None = None


current = _Current()


def work_now() -> Work:
    """The bounds of what goes on in this thread; compiling folds constants under its own."""
    if current.work is None:
        raise TooMuch("it runs outside of a rendering")
    return current.work


def counted(values: Any) -> Iterator[Any]:
    work = work_now()
    for value in values:
        work.spend()
        yield value


def formatted(pattern: str, mark: str, values: Iterable[Any]) -> int:
    """An upper bound of the characters of a pattern with these values."""
    work = work_now()
    if any(len(digits) > 9 for digits in DIGITS.findall(pattern)):
        raise TooMuch("it formats with a width of many digits")
    widths = [int(digits) for digits in DIGITS.findall(pattern)]
    return len(pattern) + pattern.count(mark) * max([40, *widths, *map(work.weigh, values)])


def percent(left: str, right: Any) -> str:
    """The operator % of a text."""
    if STAR.search(left):
        raise TooMuch("it formats with a width that is a value")
    values = right.values() if isinstance(right, dict) else right
    work_now().allow(formatted(left, "%", values if isinstance(right, (tuple, dict)) else [right]))
    return str(left % right)


def replaced(text: str, old: str, new: str) -> None:
    """Count what text.replace(old, new) makes."""
    times = text.count(old) if old else len(text) + 1
    work_now().allow(len(text) + times * len(new))


def method(text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a method of text, after its result was counted."""
    work = work_now()
    first = args[0] if args else None
    if name in ("center", "ljust", "rjust", "zfill") and isinstance(first, int):
        work.allow(max(len(text), first))
    elif name == "expandtabs":
        work.allow(len(text) + text.count("\t") * (first if isinstance(first, int) else 8))
    elif name == "replace" and len(args) > 1 and isinstance(first, str):
        replaced(text, first, str(args[1]))
    elif name == "join" and args:
        parts = list(counted(first))
        work.allow(work.weigh(parts) + len(text) * len(parts))
        args = (parts, *args[1:])
    return args
