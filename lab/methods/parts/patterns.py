"""Patterns over names of modules and parameters: matched within a time, and never by a library.

A pattern with nested repeats can take longer than anybody lives. Python's `re` cannot be stopped
while it matches; `regex` can.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from lab.errors import LabError
from lab.schema import quote

SECONDS = 2.0  # for one pattern over all names: others take a few milliseconds


def check(pattern: str) -> None:
    """Raise re.error for a text that is not a pattern."""
    try:
        re.compile(pattern)
    except (RecursionError, OverflowError, MemoryError):
        raise re.error("it is nested too deeply, or counts too far", pattern) from None


def matching(pattern: str, names: Iterable[str], seconds: float = SECONDS) -> list[str]:
    """The names that `pattern` matches as a whole. Raises re.error, and LabError if it takes long.

    `regex` reads patterns as `re` does; what only `regex` knows is refused by `check`.
    """
    import regex

    check(pattern)
    end = time.monotonic() + seconds
    try:
        compiled = regex.compile(pattern)
        return [
            name
            for name in names
            if compiled.fullmatch(name, timeout=max(0.001, end - time.monotonic()))
        ]
    except (TimeoutError, MemoryError):
        raise LabError(
            f"The pattern '{quote(pattern)}' takes longer than {seconds:g} s to match.",
            "Repeats inside repeats do that, such as (a+)+. Write it without, or list the names.",
        ) from None
    except (regex.error, RecursionError, OverflowError) as error:
        raise re.error(str(error), pattern) from None
