"""See a dataset as the model sees it, before training on it."""

import streamlit as st

from lab.ui import chart_style, data_source, data_view, row_editor, similar_rows, submit
from lab.ui.charts import View
from lab.ui.frame import end_page, head

head("Data")
submit.warm()

grid = st.grid(2, min_column_width=420, gap="medium")
with grid.cell():
    with st.container(border=True):
        chosen = data_source.choose()
    if not chosen:
        st.info("Choose a dataset to preview its examples and tokens.", icon=":material/info:")
        end_page()
    with st.container(border=True):
        spec = data_view.settings(chosen)
    train_button = st.container()
with grid.cell():
    preview = data_view.load_preview(spec)
    with train_button:
        data_view.train_on(spec, preview)
    if preview is not None:
        data_view.show_counts(preview)
        data_view.show_template_notes(preview)
if preview is None:  # the rows can be looked at, and mended
    row_editor.show(chosen)
    end_page()

view = View(dark=chart_style.is_dark())
length = spec["data"]["max_length"]
names = ["Examples", "Rows", "Lengths", "Packing", "Duplicates", "Leakage", "Invalid rows"]
# only the open one is drawn: a chart that is drawn while it is hidden is cut to another width
tabs = dict(zip(names, st.tabs(names, key="data.tab", on_change="rerun"), strict=True))
if tabs["Examples"].open:
    with tabs["Examples"]:
        data_view.show_rows(preview)
elif tabs["Rows"].open:
    with tabs["Rows"]:
        row_editor.show(chosen)
elif tabs["Lengths"].open:
    with tabs["Lengths"]:
        data_view.show_lengths(preview, length, view)
elif tabs["Packing"].open:
    with tabs["Packing"]:
        data_view.show_packed(preview, length, view)
elif tabs["Duplicates"].open:
    with tabs["Duplicates"]:
        similar_rows.show_duplicates(preview.similar)
elif tabs["Leakage"].open:
    with tabs["Leakage"]:
        similar_rows.show_leaks(preview)
elif tabs["Invalid rows"].open:
    with tabs["Invalid rows"]:
        data_view.show_invalid_rows(preview.invalid)
