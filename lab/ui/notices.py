"""The sidebar's list of running work, and a notice when a run ends."""

from __future__ import annotations

import contextlib

import streamlit as st

from lab import formatting, paths
from lab.errors import LabError
from lab.runs import index, supervisor_start
from lab.runs.run_progress import run_progress
from lab.ui import colours
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown, user_errors

ICONS = {
    "done": ":material/check_circle:",
    "stopped": ":material/pause_circle:",
    "cancelled": ":material/cancel:",
    "failed": ":material/error:",
    "crashed": ":material/error:",
}


def show() -> None:
    """Active runs with their progress. Polls only while there are any, or some wait."""
    st.session_state.setdefault("notices.seen", [])
    with contextlib.suppress(OSError):  # told by the list below
        supervisor_start.ensure_if_waiting()
    if index.unfinished_runs() or st.session_state["notices.seen"]:
        with st.sidebar:
            fragment(_list, run_every=3.0)()


def _list() -> None:
    with user_errors():  # a full disk is told here; the page beside it goes on
        supervisor_start.ensure_if_waiting()
    unfinished = [run.id for run in index.unfinished_runs()]
    for run_id in st.session_state["notices.seen"]:
        if run_id not in unfinished:
            _tell(run_id)
    st.session_state["notices.seen"] = unfinished
    active = index.active_runs()
    if not active:
        return
    st.caption("Running now")
    for run in active:
        entry = index.entry(run)
        name = f"{colours.dot(entry.colour)} {escape_markdown(entry.name or run.id)}"
        # Streamlit marks every link to the page that is open, whatever its parameters
        is_shown = st.query_params.get("run") == run.id
        with st.container(key=f"{'shown' if is_shown else 'elsewhere'}-{run.id}"):
            st.page_link(
                str(paths.ROOT / "pages" / "monitor.py"),
                label=f"{name} · {formatting.percent(run_progress(run).fraction)}",
                query_params={"run": run.id},
            )


def _tell(run_id: str) -> None:
    try:
        entry = index.entry(paths.run_dir(run_id))
    except LabError:
        return  # deleted meanwhile
    state = entry.status.state
    st.toast(
        f"{escape_markdown(entry.name or run_id)}: {escape_markdown(state)}",
        icon=ICONS.get(state, ":material/info:"),
        duration="long",
    )
