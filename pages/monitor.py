"""Watch one run live; the URL names it, so that a reload or another browser finds it again."""

import streamlit as st

from lab.ui import autopsy, data_view, links, monitoring

st.title("Monitor", anchor=False)
run = monitoring.choose()
if run is None:
    st.info("No runs yet. Start one, and it appears here.", icon=":material/info:")
    st.page_link(links.page("home"), label="Quick start", icon=":material/play_arrow:")
    st.page_link(links.page("new_run"), label="New run", icon=":material/add_circle:")
    st.stop()

stage = monitoring.stage(run)
polls = stage != "ended"


@st.fragment(run_every=1.0 if polls else None)
def head() -> None:
    monitoring.state(run)
    if monitoring.stage(run) != stage:
        st.rerun()  # the whole page, so that its buttons follow and it stops polling at the end


@st.fragment(run_every=monitoring.pace(run) if polls else None)
def charts() -> None:
    monitoring.show_charts(run, view)


@st.fragment(run_every=3.0 if polls else None)
def words() -> None:
    monitoring.words(run)


head()
monitoring.buttons(run)
autopsy.show(run)
view = monitoring.controls()
charts()
words()
data_view.first_batch(run)
