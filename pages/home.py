"""From nothing to a model that one has talked to, and back to work: four steps, recent runs."""

import streamlit as st

from lab.ui import cards, home_view
from lab.ui.frame import head

actions = head("Finetune Lab")
actions.caption(cards.machine_line())
cards.warnings()
home_view.journey()

parts = st.container(key="stack-home")  # below each other in a narrow window
recent, machine = parts.columns([2, 1], gap="medium")
with recent:
    st.subheader("Recent runs", anchor=False)
    home_view.recent()
with machine:
    st.subheader("This machine", anchor=False)
    cards.machine()
