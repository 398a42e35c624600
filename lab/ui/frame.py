"""What every page begins with: its title, and at the right what can be done with all of it; and
how one ends before its last line."""

from __future__ import annotations

from typing import NoReturn

import streamlit as st
from streamlit.delta_generator import DeltaGenerator


def head(title: str) -> DeltaGenerator:
    """The page's title; returns its row, which takes up to three actions at the right."""
    row = st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    )
    row.title(title, width="content", anchor=False)
    return row.container(
        horizontal=True, horizontal_alignment="right", vertical_alignment="center", width="content"
    )


def end_page() -> NoReturn:
    """`st.stop`: nothing below is drawn. mypy, which reads none of Streamlit's types, learns here
    that what follows runs only where the page goes on."""
    st.stop()
    raise RuntimeError("A page ends only where Streamlit runs it.")
