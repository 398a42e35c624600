"""What every page begins with: its title, and at the right what can be done with all of it."""

from __future__ import annotations

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
