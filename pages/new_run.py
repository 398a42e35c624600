"""Set up a run: model, data, method, training; all problems at once; one click, one run."""

import streamlit as st

from lab import methods, presets
from lab.spec import SECTIONS
from lab.ui import estimate_panel, form, links, new_run_view, settings_search_panel, submit
from lab.ui.frame import head
from lab.ui.markdown_safety import escape_markdown, user_errors

head("New run")
ticket = submit.ticket()
new_run_view.show_already_started(ticket)
new_run_view.prefill_form()
submit.warm()

st.pills(
    "Start from",
    [preset.name for preset in presets.PRESETS],
    format_func=lambda name: presets.get(name).title,
    key="new.preset",
    on_change=new_run_view.apply_preset,
    help="A preset fills the form; change what you like.",
)
if st.session_state.get("new.preset"):
    st.caption(presets.get(st.session_state["new.preset"]).help)

grid = st.grid(2, min_column_width=400, gap="medium")
with grid.cell():
    st.text_input("Name", key="new.name", placeholder="what you call it", persist_state="session")
    form.problem("name")
    with st.container(border=True):
        st.subheader(":material/deployed_code: Model", anchor=False)
        new_run_view.model_field()
        new_run_view.start_field()
    with st.container(border=True):
        st.subheader(":material/dataset: Data", anchor=False)
        new_run_view.dataset_field()
        form.draw("data", SECTIONS["data"], ["max_length", "eval_fraction", "packing", "loss_on"])
        with st.expander("More about the data"):
            form.draw("data", SECTIONS["data"], new_run_view.MORE_DATA)
    with st.container(border=True):
        st.subheader(":material/construction: Method", anchor=False)
        method = new_run_view.method_field()
        form.draw(f"method.{method.name}", method.config)
    with st.container(border=True):
        st.subheader(":material/school: Training", anchor=False)
        form.draw("train", SECTIONS["train"], new_run_view.MAIN_TRAIN)
        with st.expander("Budgets, schedule and optimizer"):
            form.draw("train", SECTIONS["train"], new_run_view.SCHEDULE)
        with st.expander("Precision, memory and speed"):
            form.draw("train", SECTIONS["train"], new_run_view.PRECISION)
        with st.expander("Evaluation, samples and checkpoints"):
            form.draw("train", SECTIONS["train"], new_run_view.SAVING)

with grid.cell():
    with st.container(border=True):
        st.subheader("What will happen", anchor=False)
        for icon, sentence in new_run_view.summary():
            st.markdown(f":material/{icon}: {sentence}")
        estimate_panel.panel(form.value())
        new_run_view.show_problems()
        start = st.button(
            "Start", type="primary", icon=":material/play_arrow:", key="start", width="stretch"
        )
        if start:
            with user_errors():
                run = submit.start(form.value(), ticket)
                if run is not None:
                    links.open_run(run.id)
            st.rerun()
        if st.button("Check without starting", key="check", width="stretch"):
            new_run_view.check()
        new_run_view.show_plan()
        settings_search_panel.for_form()
    with st.expander("The same as a plain script", icon=":material/code:"):
        new_run_view.show_script()
    with st.expander(
        f"About {escape_markdown(methods.get(method.name).title)}", icon=":material/info:"
    ):
        new_run_view.method_help(method)
    with st.expander("What goes together", icon=":material/grid_on:"):
        new_run_view.matrix()
