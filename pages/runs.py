"""Every run: find it, open it, repeat it, rename it, download its figures, delete it."""

import streamlit as st

from lab.runs import index
from lab.ui import import_panel, links, queue_panel, runs_view
from lab.ui.frame import head

head("Runs")
entries = index.entries()
if not entries:
    st.info("No runs yet. The first one appears here when you start it.", icon=":material/info:")
    st.page_link(links.page("new_run"), label="New run", icon=":material/add_circle:")
    import_panel.show()
    st.stop()

queue_panel.show()
chosen = runs_view.table(runs_view.search(entries))
if chosen is None:
    st.caption("Select a row to open, repeat, rename, download or delete the run.")
else:
    runs_view.buttons(chosen)
import_panel.show()
