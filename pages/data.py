"""See a dataset as the model sees it, before training on it."""

import streamlit as st

from lab.ui import chart_style, data_source, data_view, submit
from lab.ui.charts import View
from lab.ui.frame import head

head("Data")
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
    preview = data_view.load_preview(spec)
    if preview is None:
        st.stop()
    data_view.show_counts(preview)
    data_view.show_template_notes(preview)

view = View(dark=chart_style.is_dark())
length = spec["data"]["max_length"]
names = ["Rows", "Lengths", "Packed", "Twice", "Leaks", "Bad rows"]
# only the open one is drawn: a chart that is drawn while it is hidden is cut to another width
tabs = dict(zip(names, st.tabs(names, key="data.tab", on_change="rerun"), strict=True))
if tabs["Rows"].open:
    with tabs["Rows"]:
        data_view.show_rows(preview)
elif tabs["Lengths"].open:
    with tabs["Lengths"]:
        data_view.show_lengths(preview, length, view)
elif tabs["Packed"].open:
    with tabs["Packed"]:
        data_view.show_packed(preview, length, view)
elif tabs["Twice"].open:
    with tabs["Twice"]:
        data_view.show_duplicates(preview["twins"], "No row resembles another.")
elif tabs["Leaks"].open:
    with tabs["Leaks"]:
        data_view.show_duplicates(preview["leaks"], "No held-out row resembles a training row.")
elif tabs["Bad rows"].open:
    with tabs["Bad rows"]:
        data_view.show_invalid_rows(preview["bad"])
