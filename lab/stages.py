"""The limits of a request, and the parts of its work that untrusted input can make long.

The work says which part it has come to; the pool ends it when that part, or all of it, takes longer
or more memory than is allowed, and says what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from lab import formatting
from lab.errors import LabError

LONG = 5  # times the seconds, for what makes many predictions or traces every layer

# what is said of each part, and what to do when it takes too much
STAGES = {
    "request": ("answering", "Try again with a smaller model, or fewer rows."),
    "hub": (
        "waiting for the Hub",
        "Try again when the network is better, or choose what is on this machine.",
    ),
    "rows": (
        "reading the rows",
        "Check the file for a stray quote or a row of many megabytes, or split it.",
    ),
    "slots": ("filling in the rows", "Check data.placeholders and data.columns."),
    "template": (
        "rendering the chat template",
        "Set data.template to a template of the lab, or repair chat_template in the tokenizer's "
        "files; with many long rows, look at fewer.",
    ),
    "compare": ("comparing the rows", "Look at fewer rows."),
    "tokenizer": ("loading the tokenizer", "Check the tokenizer's files of the model."),
    "model": ("building the model", "Check the sizes in the model's config.json."),
    "method": (
        "matching the method with the model",
        "Write the names of modules in place of a pattern, or choose a smaller method.",
    ),
    "predict": ("predicting memory and time", "Try again; the outline alone takes less."),
}
# Parts that a file, a template, a pattern or a config decides over.
SHORT = ("hub", "rows", "slots", "template", "tokenizer", "model", "method")


@dataclass(frozen=True)
class Limits:
    """What one request may take, beyond what the planner holds anyway."""

    seconds: float = 60.0
    part_seconds: float = 30.0  # for each of SHORT
    memory_bytes: int = field(
        default_factory=lambda: min(4_000_000_000, int(psutil.virtual_memory().total) // 3)
    )


def too_long(stage: str, seconds: float) -> tuple[str, str]:
    """(message, hint) for a request that was ended in `stage` after `seconds`."""
    doing, hint = STAGES.get(stage, STAGES["request"])
    return f"{doing.capitalize()} took longer than {seconds:g} s and was ended.", hint


def too_much(stage: str, memory_bytes: int) -> tuple[str, str]:
    """(message, hint) for a request that was ended in `stage` because of its memory."""
    doing, hint = STAGES.get(stage, STAGES["request"])
    size = formatting.size(memory_bytes)
    return f"{doing.capitalize()} took more than {size} of memory and was ended.", hint


_tell: list[Callable[[str], None]] = []
_current = ["request"]


def listen(tell: Callable[[str], None]) -> None:
    """Have `tell` called with the name of each part that the work comes to."""
    _tell[:] = [tell]


def current() -> str:
    return _current[-1]


@contextmanager
def stage(name: str) -> Iterator[None]:
    """The part of the work inside is `name`, one of STAGES. Raises LabError for a MemoryError."""
    _enter(name)
    try:
        yield
    except MemoryError:
        doing, hint = STAGES[name]
        raise LabError(f"{doing.capitalize()} takes more memory than there is.", hint) from None
    finally:
        _current.pop()
        for tell in _tell:
            tell(current())


def _enter(name: str) -> None:
    _current.append(name)
    for tell in _tell:
        tell(name)
