"""Changes that need less memory: on New run before it starts, and after a run that ran out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import streamlit as st

from lab import formatting
from lab.errors import LabError
from lab.fit_answers import Saving
from lab.forecast.memory_savers import with_changes
from lab.preflight.client import planner
from lab.spec import RunSpec
from lab.ui import form, method_card
from lab.ui.markdown_safety import escape_markdown, tell
from lab.ui.waiting import wait

ANSWER, MAX_SHOWN = "new.fit.answer", 5


def in_words(saving: Saving, memory_bytes: int | None = None) -> str:
    """ "Activation checkpointing (slower) · saves 1.20 GB · peak 3.10 GB, fits · same effective
    batch" as Markdown."""
    fits = ""
    if memory_bytes is not None:
        is_enough = saving.peak_bytes <= memory_bytes
        fits = ", :green[fits]" if is_enough else ", :red[still too large]"
    effect = "same effective batch" if saving.keeps_effective_batch else "changes the training"
    return (
        f"{escape_markdown(saving.title)} · saves **{formatting.size(saving.saves_bytes)}** · "
        f"peak {formatting.size(saving.peak_bytes)}{fits} · {effect}"
    )


def smallest_first(savings: Sequence[Saving], memory_bytes: int | None) -> list[Saving]:
    """What fits before what does not; then what leaves the training as it is; then the least that
    is saved, or where nothing fits, the most."""

    def rank(saving: Saving) -> tuple[bool, bool, int]:
        fits = memory_bytes is None or saving.peak_bytes <= memory_bytes
        return not fits, not saving.keeps_effective_batch, (1 if fits else -1) * saving.saves_bytes

    return sorted(savings, key=rank)


def popover(spec: dict[str, Any], memory_bytes: int | None) -> None:
    """In the bar of New run: the changes, each with what it saves and Apply; asked when opened."""
    opened = st.popover(
        "What would fit", icon=":material/memory_alt:", key="new.fit", on_change="rerun"
    )
    if not opened.open:
        return
    with opened:
        question = json.dumps(spec, sort_keys=True, default=str)
        answered, savings = st.session_state.get(ANSWER) or ("", [])
        if answered != question:
            try:
                label = "Estimating the memory of each change …"
                savings = wait(label, lambda: planner.fixes(spec))
            except LabError as error:
                tell(error)
                return
            st.session_state[ANSWER] = question, savings
        if not savings:
            st.markdown("No single change needs less. Choose a smaller model.")
            return
        st.markdown("**Ways to reduce memory** (estimated)")
        if memory_bytes and all(saving.peak_bytes > memory_bytes for saving in savings):
            st.caption("No single change is enough: apply one, then look again.")
        for index, saving in enumerate(smallest_first(savings, memory_bytes)[:MAX_SHOWN]):
            text, action = st.columns([5, 1], vertical_alignment="center")
            text.markdown(in_words(saving, memory_bytes))
            action.button("Apply", key=f"new.fit.{index}", on_click=_apply, args=(saving.changes,))


def _apply(changes: dict[str, Any]) -> None:
    """The form with the change. Of a pair, both sides: they share all but method and rate."""
    if method_card.is_pair():
        changes = {key: value for key, value in changes.items() if key != "method"}
    form.load(RunSpec.parse(with_changes(form.value(), changes), []))
