"""After a run that ran out of memory: what would fit, and one click to queue it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab import formatting
from lab.atomic_files import read_object
from lab.errors import LabError
from lab.forecast.memory_savers import Fix, resolved
from lab.paths import RunDir
from lab.preflight.client import planner
from lab.runs import launch
from lab.ui import links
from lab.ui.markdown_safety import escape_markdown, tell
from lab.ui.waiting import wait


def show(run: RunDir) -> None:
    """Nothing, unless the run ended for want of memory."""
    if not (read_object(run.result) or {}).get("out_of_memory"):
        return
    key = f"autopsy.{run.id}"
    if key not in st.session_state:
        if st.button("What would fit?", icon=":material/memory_alt:", key=f"ask.{key}"):
            label = "Predicting the peak of each change …"
            try:
                st.session_state[key] = wait(label, lambda: planner.fixes(resolved(run)))
            except LabError as error:
                tell(error)
                return
            st.rerun()
        return
    with st.container(border=True):
        st.markdown("**What makes it smaller** (predicted)")
        for i, fix in enumerate(st.session_state[key]):
            _line(run, i, fix)


def _line(run: RunDir, index: int, fix: dict[str, Any]) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        effect = "same batch" if fix["keeps_batch"] else "trains differently"
        st.markdown(
            f"{escape_markdown(fix['title'])} · saves "
            f"**{formatting.size(fix['saves_bytes'])}** · peak "
            f"{formatting.size(fix['peak_bytes'])} · {effect}"
        )
        if st.button("Queue it with this", icon=":material/replay:", key=f"fix.{run.id}.{index}"):
            _start(run, fix)


def _start(run: RunDir, fix: dict[str, Any]) -> None:
    try:
        new_run = launch.submit(Fix(fix["title"], fix["changes"]).apply(resolved(run)))
    except LabError as error:
        tell(error)
        return
    links.open_run(new_run.id)
