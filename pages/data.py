"""See a dataset as the model sees it, before training on it."""

import streamlit as st

from lab.ui import data_source, data_view, monitoring, submit
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

view = View(dark=monitoring.is_dark())
length = spec["data"]["max_length"]
tabs = st.tabs(["Rows", "Lengths", "Packed", "Twice", "Leaks", "Bad rows"])
with tabs[0]:
    data_view.rows(seen)
with tabs[1]:
    data_view.lengths(seen, length, view)
with tabs[2]:
    data_view.packed(seen, length, view)
with tabs[3]:
    data_view.pairs(seen["twins"], "No row resembles another.")
with tabs[4]:
    data_view.pairs(seen["leaks"], "No held-out row resembles a training row.")
with tabs[5]:
    data_view.bad(seen["bad"])
