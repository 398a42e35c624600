"""Every run: find it, see how good it is, act on one or on many."""

import streamlit as st

from lab.runs import index
from lab.ui import import_panel, links, queue_panel, runs_bar, runs_view
from lab.ui.frame import end_page, head

actions = head("Runs")
with actions:
    import_panel.show()
entries = index.entries()
if not entries:
    st.info("No runs yet. The first run appears here when you start it.", icon=":material/info:")
    st.page_link(links.page("new_run"), label="New run", icon=":material/add_circle:")
    end_page()

queue_panel.show()
runs_bar.outcome_of_last_action()
selected = runs_view.table(runs_view.search(entries))
if len(selected) == 1:
    runs_view.details(selected[0])
elif not selected:
    st.caption("Select rows to open, compare, chat with, download, tag, archive or delete runs.")
runs_bar.show(selected)
