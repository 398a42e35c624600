"""Work of a background process as pages show it: phase, time and Stop, then what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from lab import background_job, formatting
from lab.background_job import JobRecord
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown, run_action

LOOK_S = 1.0


def follow(file: Path, stop_key: str, show: Callable[[JobRecord], None]) -> bool:
    """A job: its phase while it works, then what `show` draws, or why it failed; whether it is at
    work. Nothing before its first start."""
    first = background_job.read(file)
    was_active = first is not None and first.is_active

    @fragment(run_every=LOOK_S if was_active else None)
    def look() -> None:
        job = background_job.read(file)
        if job is None:
            return
        if job.is_active:
            with st.container(horizontal=True, vertical_alignment="center"):
                text = f"{job.phase} · {formatting.duration(job.seconds)}"
                st.markdown(f":material/progress_activity: {escape_markdown(text)}")
                if st.button("Stop", icon=":material/stop_circle:", key=stop_key):
                    run_action(lambda: background_job.stop(file))
            return
        if was_active:
            st.rerun()  # the whole page: its buttons follow
        if job.finish == "failed":
            st.markdown(f":red[:material/error: {escape_markdown(job.error)}]")
            if job.hint:
                st.caption(escape_markdown(job.hint))
        elif job.finish == "interrupted":
            st.caption(":material/warning: The last one was interrupted.")
        else:
            show(job)

    look()
    return was_active
