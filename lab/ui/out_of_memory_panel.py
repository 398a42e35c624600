"""After a run that ran out of memory: what would fit, and one click to queue it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab.errors import LabError
from lab.fit_answers import Saving
from lab.forecast.memory_savers import with_changes
from lab.paths import RunDir
from lab.preflight.client import planner
from lab.preflight.start import start_run
from lab.runs import resume_settings
from lab.runs.result import read_result
from lab.ui import links, memory_changes
from lab.ui.markdown_safety import tell
from lab.ui.waiting import wait


def show(run: RunDir) -> None:
    """Nothing, unless the run ended for want of memory."""
    result = read_result(run)
    if result is None or result.out_of_memory is None:
        return
    key = f"autopsy.{run.id}"
    if key not in st.session_state:
        if st.button("Suggest settings that fit", icon=":material/memory_alt:", key=f"ask.{key}"):
            label = "Estimating the memory of each change …"
            try:
                st.session_state[key] = wait(label, lambda: planner.fixes(_spec_of(run)))
            except LabError as error:
                tell(error)
                return
            st.rerun()
        return
    with st.container(border=True):
        st.markdown("**Ways to reduce memory** (estimated)")
        for i, saving in enumerate(st.session_state[key]):
            _line(run, i, saving)


def _spec_of(run: RunDir) -> dict[str, Any]:
    return resume_settings.spec_of(run).to_json()


def _line(run: RunDir, index: int, saving: Saving) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(memory_changes.in_words(saving))
        if st.button(
            "Start run with this change", icon=":material/replay:", key=f"fix.{run.id}.{index}"
        ):
            _start(run, saving)


def _start(run: RunDir, saving: Saving) -> None:
    try:
        new_run = start_run(with_changes(_spec_of(run), saving.changes))
    except LabError as error:
        tell(error)
        return
    links.open_run(new_run.id)
