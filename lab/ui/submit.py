"""From a form to a run: check in the planner, then start it once."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import streamlit as st

from lab.errors import SpecError
from lab.paths import RunDir
from lab.preflight.client import planner
from lab.presets import Preset
from lab.runs import submissions, warm_worker
from lab.ui.form import PREFIX
from lab.ui.waiting import wait


def ticket() -> str:
    """This form's ticket. It stands in the URL, so that a reload keeps it."""
    draft: str = st.query_params.get("draft", "")
    if not submissions.TICKET.fullmatch(draft):
        draft = submissions.new()
        st.query_params["draft"] = draft
    return draft


def renew() -> str:
    """A new ticket: the next submission is another run."""
    draft = submissions.new()
    st.query_params["draft"] = draft
    return draft


def warm() -> None:
    """While a person still fills in the form: start the planner, and have a worker ready."""
    threading.Thread(target=planner.warm, daemon=True).start()
    with contextlib.suppress(OSError):  # a convenience; Start says what is wrong with the disk
        warm_worker.request_warm_worker()


def start(spec: dict[str, Any], ticket: str) -> RunDir | None:
    """The run, or None with the problems noted for their fields. Raises LabError."""
    run = submissions.run_of(ticket)
    if run is not None:
        if submissions.is_same(ticket, spec):
            return run
        ticket = renew()  # the form was changed after its run had started
    try:
        label = "Checking the model, the data and the settings …"
        checked = wait(label, lambda: planner.check(spec))
    except SpecError as error:
        note(error)
        return None
    st.session_state[f"{PREFIX}.problems"] = {}
    return submissions.start(checked, ticket)


def note(error: SpecError) -> None:
    """Keep the problems, so that the form shows each under its field."""
    st.session_state[f"{PREFIX}.problems"] = {
        problem.field: problem.message for problem in error.problems
    }


def quick_start(preset: Preset) -> RunDir:
    """The preset's run; clicking twice or reloading gives the same one. Raises LabError."""
    draft = ticket()
    run = submissions.run_of(draft)
    if run is not None:
        return run
    checked = wait("Checking the model and the data …", lambda: planner.check(preset.changes))
    return submissions.start(checked, draft)
