"""Know the memory of every method before the run: any model, any device, no weights."""

import streamlit as st

from lab.ui import memory_handoff, memory_limits, memory_settings, memory_view
from lab.ui.chart_style import is_dark
from lab.ui.charts import View
from lab.ui.fragments import fragment
from lab.ui.frame import head
from lab.ui.markdown_safety import user_errors

with head("Memory"):
    memory_settings.switches()
with user_errors():
    settings = memory_settings.choose()
    for setting in settings:
        setting.estimates.look(f"methods{setting.letter}")
complete_at_start = all(setting.estimates.is_complete for setting in settings)
every = None if complete_at_start else 2.0  # a chart and a table are drawn each time


@fragment(run_every=every)
def answers() -> None:
    for setting in settings:
        setting.estimates.look(f"methods{setting.letter}")
    is_complete = all(setting.estimates.is_complete for setting in settings)
    memory_view.show(settings, View(dark=is_dark()), rules=bool(st.session_state["rules"]))
    if is_complete and not complete_at_start:
        st.rerun()


answers()
with st.container(horizontal=True, vertical_alignment="bottom"):
    method = memory_settings.choose_method()
    memory_handoff.buttons(settings, method)
tabs = st.tabs(list(memory_view.TABS), key="memory.tab", on_change="rerun")
figures, limits, fastest, rules, measured = tabs
if figures.open:
    with figures:
        fragment(memory_view.figures, run_every=every)(settings)
if limits.open:
    with limits:
        memory_limits.show(settings)
if fastest.open:
    with fastest:
        memory_view.fastest(settings[0], method)
if rules.open:
    with rules:
        memory_view.rules(settings[0])
if measured.open:
    with measured:
        memory_view.measured()
st.caption(
    "Peak memory of a training step, by method and part. One step is traced on fake tensors with "
    "a model of CUDA's kernels and caching allocator; no GPU is needed. The camera icon saves the "
    "chart. The page URL keeps these settings."
)
