"""Watch one run live; the URL names it, so that a reload or another browser finds it again."""

import streamlit as st

from lab.ui import links, monitoring

st.title("Monitor", anchor=False)
run = monitoring.choose()
if run is None:
    st.info("No runs yet. Start one, and it appears here.", icon=":material/info:")
    st.page_link(links.page("home"), label="Quick start", icon=":material/play_arrow:")
    st.page_link(links.page("new_run"), label="New run", icon=":material/add_circle:")
    st.stop()

active = monitoring.is_active(run)


@st.fragment(run_every=1.0 if active else None)
def head() -> None:
    monitoring.state(run)
    if active and not monitoring.is_active(run):
        st.rerun()  # once more, so that the page stops polling and its buttons follow


@st.fragment(run_every=1.0 if active else None)
def charts() -> None:
    monitoring.show_charts(run, view)


@st.fragment(run_every=3.0 if active else None)
def words() -> None:
    monitoring.words(run)


head()
monitoring.buttons(run)
view = monitoring.controls()
charts()
words()
