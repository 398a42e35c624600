"""Watch one run live; the URL names it, so that a reload or another browser finds it again."""

import streamlit as st

from lab.ui import data_view, links, monitor_view, out_of_memory_panel
from lab.ui.frame import head

head("Monitor")
run = monitor_view.choose()
if run is None:
    st.info("No runs yet. Start one, and it appears here.", icon=":material/info:")
    st.page_link(links.page("home"), label="Quick start", icon=":material/play_arrow:")
    st.page_link(links.page("new_run"), label="New run", icon=":material/add_circle:")
    st.stop()

stage = monitor_view.stage(run)
polls = stage != "ended"


@st.fragment(run_every=1.0 if polls else None)
def now() -> None:
    monitor_view.state(run)
    if monitor_view.stage(run) != stage:
        st.rerun()  # the whole page, so that its buttons follow and it stops polling at the end


@st.fragment(run_every=monitor_view.pace(run) if polls else None)
def charts() -> None:
    monitor_view.show_charts(run, view)


@st.fragment(run_every=3.0 if polls else None)
def words() -> None:
    monitor_view.words(run)


now()
monitor_view.buttons(run)
out_of_memory_panel.show(run)
view = monitor_view.controls()
charts()
words()
data_view.first_batch(run)
