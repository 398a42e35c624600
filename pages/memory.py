"""Know the memory of every method before the run: any model, any device, no weights."""

import streamlit as st

from lab.ui import memory_view, method_estimates, settings_search_panel
from lab.ui.chart_style import is_dark
from lab.ui.charts import View
from lab.ui.frame import head
from lab.ui.markdown_safety import user_errors

head("Memory")
st.caption(
    "The peak of a training step, by method and part. The step itself is traced on tensors "
    "without data, under the rules of CUDA's kernels and allocator; no GPU is needed."
)
with user_errors():
    grid = st.grid(2, min_column_width=320, gap="medium")
    with grid.cell():
        model = memory_view.choose_model()
    with grid.cell():
        name, device = memory_view.choose_device()
    settings = {"model": model, **memory_view.settings()}
    estimates = method_estimates.job_for(settings, device)
    estimates.look("methods")


@st.fragment(run_every=None if estimates.is_complete else 1.0)
def answers() -> None:
    estimates.look("methods")
    was_complete = estimates.is_complete
    memory_view.show(estimates, name, View(dark=is_dark()))
    if was_complete and not complete_at_start:
        st.rerun()


complete_at_start = estimates.is_complete
answers()
with st.expander("The fastest settings that fit", icon=":material/speed:"):
    chosen = memory_view.choose_method()
    settings_search_panel.for_device(method_estimates.spec_of(settings, chosen), device)
with st.expander("From 7B to 70B", icon=":material/table_chart:"):
    if st.button("Compute the table", key="memory.sizes", icon=":material/calculate:"):
        with user_errors(), st.spinner("Reading four models …"):
            memory_view.show_by_size(settings)
