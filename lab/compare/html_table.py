"""Text and tables of exported reports: whatever a name holds, it is no more than text in them."""

from __future__ import annotations

import html
from collections.abc import Sequence

from lab.visible import visible


def text_of(value: str) -> str:
    """Escaped, with what draws nothing made visible."""
    return html.escape(visible(value))


def table(head: Sequence[str], rows: Sequence[Sequence[tuple[str, bool]]]) -> str:
    """`rows` hold (text, whether it is the best)."""
    top = "".join(f"<th>{text_of(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="best">{text_of(cell)} ✓</td>' if best else f"<td>{text_of(cell)}</td>"
            for cell, best in row
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
