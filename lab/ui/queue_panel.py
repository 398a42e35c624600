"""The queue on the Runs page: what waits and why, its order, its rules."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab.paths import RunDir
from lab.runs import actions, index, queue
from lab.ui import chat_memory_panel
from lab.ui.form_fields import help_text
from lab.ui.markdown_safety import escape_markdown, run_action


def show() -> None:
    """Shown where something waits, or the queue is paused."""
    for trouble in queue.unreleased_memory():
        st.warning(escape_markdown(trouble), icon=":material/warning:")
    line, rules = queue.waiting_runs(), queue.settings()
    if not line and not rules.paused:
        return
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**Queue**, {len(line)} waiting{', paused' if rules.paused else ''}")
            if rules.paused:
                if st.button("Resume queue", icon=":material/play_arrow:", key="queue.continue"):
                    run_action(lambda: actions.set_paused(False))
            elif st.button("Pause queue", icon=":material/pause:", key="queue.pause"):
                run_action(actions.set_paused)
            with st.popover("Queue settings", icon=":material/rule:"):
                _rules(rules)
        for i, run in enumerate(line):
            _line(i, run)


def _line(i: int, run: RunDir) -> None:
    entry = index.entry(run)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"{i + 1}. {escape_markdown(entry.name or run.id)}")
        st.caption(escape_markdown(entry.status.message))
        chat_memory_panel.offer(entry.status.message, f"queue.free.{run.id}")
        if i and st.button(
            "Move to front", icon=":material/vertical_align_top:", key=f"up.{run.id}"
        ):
            run_action(lambda: queue.reorder(run, first=True))
        if st.button("Remove from queue", icon=":material/close:", key=f"out.{run.id}"):
            run_action(lambda: actions.command(run, "cancel"))


def _rules(rules: queue.QueueSettings) -> None:
    fields = {field.name: field for field in queue.describe()}

    def shared(name: str) -> dict[str, Any]:
        return {"label": fields[name].title, "help": help_text(fields[name].metadata)}

    at_once = st.number_input(
        **shared("at_once"),
        min_value=1,
        max_value=64,
        value=rules.at_once,
        key="queue.at_once",
    )
    go_on = st.toggle(
        **shared("continue_after_failure"), value=rules.continue_after_failure, key="queue.after"
    )
    spare = st.toggle(**shared("spare"), value=rules.spare, key="queue.spare")
    if (at_once, go_on, spare) != (rules.at_once, rules.continue_after_failure, rules.spare):
        run_action(
            lambda: queue.change(
                at_once=int(at_once), continue_after_failure=bool(go_on), spare=bool(spare)
            )
        )
