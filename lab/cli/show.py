"""How figures and tables look in a terminal."""

from __future__ import annotations

import json
import math
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console()


def print_json(value: Any) -> None:
    """One JSON document; NaN and infinity, which JSON has no numbers for, as text."""
    print(json.dumps(_plain(value), indent=1, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return value


def table(title: str, columns: list[str], rows: list[list[str]], right: str = "") -> None:
    """A table on the terminal; `right` marks right-aligned columns with r, others with any."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        justify = "right" if right[place : place + 1] == "r" else "left"
        made.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        # names, paths and messages may hold what rich would take for markup
        made.add_row(*(escape(cell) for cell in row))
    console.print(made)


def loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
