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


def count(value: float | None) -> str:
    """134,515,008 → "134.5 M"."""
    if value is None:
        return "–"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:g}"


def size(value: float | None) -> str:
    """Bytes in powers of ten, as the interface uses them."""
    if value is None:
        return "–"
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= scale:
            return f"{value / scale:.2f} {unit}" if unit == "GB" else f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
