"""Set up a run, or two on equal terms: model, data, method, training; the cost before the click."""

import streamlit as st

from lab import methods
from lab.ui import (
    estimate_panel,
    form,
    form_problems,
    method_card,
    new_run_view,
    saved_specs,
    settings_search_panel,
    start_bar,
    submit,
    worth_knowing_view,
)
from lab.ui.frame import head
from lab.ui.markdown_safety import escape_markdown

actions = head("New run")
ticket = submit.ticket()
new_run_view.prefill_form()
new_run_view.take_upload()
saved_specs.menus(actions)
new_run_view.show_already_started(ticket)
submit.warm()
new_run_view.preset_pills()
spec = form_problems.refresh()

grid = st.grid(2, min_column_width=440, gap="medium")
with grid.cell():
    with st.container(border=True):
        new_run_view.model_card()
    with st.container(border=True):
        new_run_view.data_card()
    with st.container(border=True):
        method_card.card()
    with st.container(border=True):
        new_run_view.train_card()

with grid.cell():
    if not form_problems.blocking():
        for each in method_card.specs():
            estimate_panel.panel(each, each["name"] if method_card.is_pair() else "")
    worth_knowing_view.of_specs(method_card.specs())
    start_bar.show_checked()
    settings_search_panel.for_form()
    with st.expander("Export as a Python script", icon=":material/code:"):
        new_run_view.show_script()
    method = methods.get(form.value()["method"]["name"])
    with st.expander(f"About {escape_markdown(method.title)}", icon=":material/info:"):
        new_run_view.method_help(method)
    with st.expander("Compatibility of methods and options", icon=":material/grid_on:"):
        new_run_view.matrix()

start_bar.draw(spec, ticket)
