"""The tabs below the curves of Compare; only the open one is drawn."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from lab.compare import notes, report
from lab.compare.contestants import Contestant
from lab.ui import compare_examples, compare_plots, compare_rank, compare_scores, compare_tables
from lab.ui.markdown_safety import run_action

Tab = Callable[[list[Contestant]], None]


def _notes(shown: list[Contestant]) -> None:
    ids = report.ids_of(shown)
    text = st.text_area(
        "Notes", notes.read(ids), key=f"compare.notes.{notes.file_of(ids).stem}", height=180,
        max_chars=notes.MAX_NOTE_CHARS, help="Saved with these runs and included in the report.",
    )  # fmt: skip
    if st.button("Save notes", key="compare.notes.save"):
        run_action(lambda: notes.write(ids, text or ""))


TABS: dict[str, Tab] = {
    "Figures": compare_tables.figures_table,
    "Scores": compare_scores.show,
    "Settings that differ": compare_tables.settings_table,
    "Trade-offs": compare_plots.planes,
    "Answers": compare_examples.answers,
    "By example": compare_examples.by_example,
    "Rank": compare_rank.show,
    "Notes": _notes,
}


def show(shown: list[Contestant]) -> None:
    titles = list(TABS)
    requested = st.query_params.get("tab")
    tabs = st.tabs(
        titles, key="compare.tab", on_change="rerun",
        default=requested if requested in titles else titles[0],
    )  # fmt: skip
    for title, tab in zip(titles, tabs, strict=True):
        if tab.open:
            st.query_params["tab"] = title
            with tab:
                TABS[title](shown)
