"""How figures and tables look in a terminal."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table

from lab import background_job
from lab.errors import LabError
from lab.visible import visible


class _Terminal(Console):
    """A console on which stored text cannot act: names, notes, logs and what models say come from
    untrusted files, and a terminal obeys the control characters in them."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            # what rich itself tells the terminal, such as to move the cursor, is `control`
            yield Segment(text if control else visible(text), style, control)


console = _Terminal(emoji=False)  # a set or run may be named :x:


def say(text: object, *, error: bool = False) -> None:
    """A line on stdout, or on stderr for an `error`, in which nothing acts on the terminal."""
    print(visible(text), file=sys.stderr if error else sys.stdout, flush=True)


def write(text: str) -> None:
    """As `say`, without an end of the line."""
    sys.stdout.write(visible(text))
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """One JSON document; NaN and infinity, which JSON has no numbers for, as text. What a terminal
    would obey is escaped as JSON does it, so that the values stay what they are."""
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False)
    shown = "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text
    )
    print(shown)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return value


@dataclass(frozen=True)
class Output:
    """What a verb answers: `data` becomes one JSON document under --json, and `display` prints it
    for a person otherwise."""

    data: Any
    display: Callable[[], object]
    exit_code: int = 0

    def print(self, *, as_json: bool) -> int:
        if as_json:
            print_json(self.data)
        else:
            self.display()
        return self.exit_code


def result_of(file: Path, arguments: argparse.Namespace, interrupted: LabError) -> dict[str, Any]:
    """What a job of the background returns once it is over; its phases are told meanwhile. Raises
    LabError: `interrupted` where it does not say itself why it failed."""
    job = background_job.wait(
        file, lambda phase: None if arguments.json else say(phase, error=True)
    )
    if job.finish != "done":
        raise LabError(job.error or interrupted.message, job.hint or interrupted.hint)
    return dict(job.result)


def table(title: str, columns: list[str], rows: list[list[str]], right: str = "") -> None:
    """A table on the terminal; `right` marks right-aligned columns with r, others with any."""
    # names, paths and messages may hold what rich would take for markup
    rich_table = Table(
        title=escape(title), title_justify="left", header_style="bold", box=None, pad_edge=False
    )
    for index, column in enumerate(columns):
        justify = "right" if right[index : index + 1] == "r" else "left"
        rich_table.add_column(escape(column), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        rich_table.add_row(*(escape(cell) for cell in row))
    console.print(rich_table)


def loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def rate(value: float | None) -> str:
    """Tokens per second."""
    return f"{value:.0f}" if value else "–"
