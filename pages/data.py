"""See a dataset as the model sees it, before training on it."""

import streamlit as st

from lab.ui import data_source, data_view, monitor_view, submit
from lab.ui.charts import View

st.title("Data", anchor=False)
submit.warm()

grid = st.grid(2, min_column_width=420, gap="medium")
with grid.cell():
    with st.container(border=True):
        chosen = data_source.choose()
    if not chosen:
        st.info("Choose a dataset to see it as the model does.", icon=":material/info:")
        st.stop()
    with st.container(border=True):
        spec = data_view.settings(chosen)
    data_view.train_on(spec)
with grid.cell():
    seen = data_view.look(spec)
    if seen is None:
        st.stop()
    data_view.figures(seen)
    data_view.notes(seen)

view = View(dark=monitor_view.is_dark())
length = spec["data"]["max_length"]
names = ["Rows", "Lengths", "Packed", "Twice", "Leaks", "Bad rows"]
# only the open one is drawn: a chart that is drawn while it is hidden is cut to another width
tabs = dict(zip(names, st.tabs(names, key="data.tab", on_change="rerun"), strict=True))
if tabs["Rows"].open:
    with tabs["Rows"]:
        data_view.rows(seen)
elif tabs["Lengths"].open:
    with tabs["Lengths"]:
        data_view.lengths(seen, length, view)
elif tabs["Packed"].open:
    with tabs["Packed"]:
        data_view.packed(seen, length, view)
elif tabs["Twice"].open:
    with tabs["Twice"]:
        data_view.pairs(seen["twins"], "No row resembles another.")
elif tabs["Leaks"].open:
    with tabs["Leaks"]:
        data_view.pairs(seen["leaks"], "No held-out row resembles a training row.")
elif tabs["Bad rows"].open:
    with tabs["Bad rows"]:
        data_view.bad(seen["bad"])
