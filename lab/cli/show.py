"""How figures and tables look in a terminal."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console()


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def table(title: str, columns: list[str], rows: list[list[str]], right: str = "") -> None:
    """A table on the terminal; `right` marks right-aligned columns with r, others with any."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        justify = "right" if right[place : place + 1] == "r" else "left"
        made.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        made.add_row(*row)
    console.print(made)


def loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
