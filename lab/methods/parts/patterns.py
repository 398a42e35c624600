"""Names of modules and parameters, and patterns over them that begin with `re:`.

Patterns are matched within a time, and never by a library.
A pattern with nested repeats can take longer than anybody lives. Python's `re` cannot be stopped
while it matches; `regex` can.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from lab.errors import LabError, Problem
from lab.schema import NAME, PATTERN_SIGN, quote

SECONDS = 2.0  # for one pattern over all names: others take a few milliseconds


def is_pattern(entry: str) -> bool:
    """Whether an entry of a list of names is a pattern. Runs of older labs keep some without the
    sign: what cannot be a name."""
    return entry.startswith(PATTERN_SIGN) or not NAME.fullmatch(entry)


def named(entry: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that one entry means: a whole name or its last parts, or a pattern's
    matches. Raises re.error and LabError as `matching` does."""
    if is_pattern(entry):
        return matching(entry.removeprefix(PATTERN_SIGN), names)
    return [name for name in names if name == entry or name.endswith(f".{entry}")]


def all_named(entries: Iterable[str], names: Iterable[str]) -> set[str]:
    """Those of `names` that any entry means."""
    known = list(names)
    return {name for entry in entries for name in named(entry, known)}


def problems(field: str, entries: Iterable[str], names: list[str], nothing: str) -> list[Problem]:
    """What is wrong with the entries of `field`. `nothing` says behind an entry what it
    is when it names none of `names`, and what there is to choose from."""
    problems: list[Problem] = []
    for entry in entries:
        if is_pattern(entry) and not entry.startswith(PATTERN_SIGN):
            message = (
                f"'{quote(entry)}' is not a name. If it is a pattern over full names, write "
                f"'{PATTERN_SIGN}{quote(entry)}'."
            )
            problems.append(Problem(field, message))
            continue
        try:
            if not named(entry, names):
                problems.append(Problem(field, f"'{quote(entry)}' {nothing}"))
        except re.error as error:
            pattern = quote(entry.removeprefix(PATTERN_SIGN))
            problems.append(
                Problem(field, f"'{pattern}' is not a valid regular expression: {error}.")
            )
        except LabError as error:
            problems.append(Problem(field, str(error)))
    return problems


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
