"""Tables of Compare: the figures, and the settings that differ."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from lab.compare import figures
from lab.compare.contestants import Contestant
from lab.compare.curves import HIGHER, LOWER
from lab.compare.figures import figure_rows
from lab.compare.settings_diff import SettingRow, setting_rows
from lab.formatting import quantity
from lab.ui import colours, compare_price, titles
from lab.ui.chart_style import is_dark
from lab.ui.compare_runs import name_of, plain_name
from lab.ui.markdown_safety import escape_markdown, plain

ARROWS = {LOWER: "↓", HIGHER: "↑", "": ""}
BEST = ":material/check_circle:"
WIDEST = 6  # contestants beside each other; more stand below each other


def figures_table(shown: list[Contestant]) -> None:
    """Figures as rows and runs as columns; above six runs turned round."""
    rows = figure_rows(shown, compare_price.current(shown))
    if not rows:
        st.caption("Nothing has been measured yet.")
        return
    if len(shown) > WIDEST:
        _turned(shown, rows)
        return
    model = titles.model(shown[0].first.entry.model)
    table: dict[str, list[str]] = {
        "Figure": [f"{row.figure.title} {ARROWS[row.figure.better]}".strip() for row in rows],
        f"{colours.BASE_DOT} {escape_markdown(model)}": [
            figures.text(row.figure, row.base) for row in rows
        ],
    }
    for index, contestant in enumerate(shown):
        cells = []
        for row in rows:
            cell = row.cells[index]
            text = figures.text(row.figure, cell.value, cell.half)
            if row.figure.key == "trainable":
                text = figures.trainable_text(contestant)
            cells.append(f"**{text}** {BEST}" if cell.is_best else text)
        table[_heading(contestant, table)] = cells
    st.table(pd.DataFrame(table), border="horizontal", hide_index=True)
    st.caption(
        "↓ lower is better, ↑ higher is better. The best value is marked where the difference is "
        "larger than its uncertainty."
    )


def _heading(contestant: Contestant, table: dict[str, list[str]]) -> str:
    """The name as a column; one that another run has too gets the end of its id."""
    name = name_of(contestant)
    return f"{name} {contestant.id[-4:]}" if name in table else name


def _turned(shown: list[Contestant], rows: list[figures.Row]) -> None:
    frame = pd.DataFrame(
        {
            " ": ["●"] * len(shown),
            "Run": [plain_name(each) for each in shown],
            **{
                f"{row.figure.title} {ARROWS[row.figure.better]}".strip(): [
                    ("✓ " if cell.is_best else "") + figures.text(row.figure, cell.value, cell.half)
                    for cell in row.cells
                ]
                for row in rows
            },
        }
    )
    inks = [f"color: {colours.hex_of(each.first.entry.colour, is_dark())}" for each in shown]
    st.dataframe(
        frame.style.apply(lambda _: inks, subset=[" "]), hide_index=True, key="compare.figures",
        alt="Figures of all runs shown",
    )  # fmt: skip
    st.caption("↓ lower is better, ↑ higher is better. ✓ marks the best where it is certain.")


def settings_table(shown: list[Contestant]) -> None:
    """Only what differs, with a switch for the others."""
    rows = setting_rows(shown)
    same = [row for row in rows if not row.differs]
    differing = [row for row in rows if row.differs]
    if len(shown) < 2:
        st.caption("Choose a second run to see what differs.")
        return
    st.caption(f"The same for all: {quantity(len(same), 'setting')}.")
    shows_all = st.toggle("Show them", key="compare.settings.all")
    listed = differing + (same if shows_all else [])
    if not listed:
        st.markdown("All settings are the same.")
        return
    table: dict[str, list[str]] = {"Setting": [_title(row, rows) for row in listed]}
    for index, contestant in enumerate(shown):
        table[_heading(contestant, table)] = [
            escape_markdown(str(plain(row.values[index]))[:300]) for row in listed
        ]
    st.table(pd.DataFrame(table), border="horizontal", hide_index=True)


def _title(row: SettingRow, rows: list[SettingRow]) -> str:
    """The title; with its section where another setting has the same."""
    is_shared = sum(other.title == row.title for other in rows) > 1
    return f"{row.title} ({row.key.partition('.')[0]})" if is_shared else row.title
