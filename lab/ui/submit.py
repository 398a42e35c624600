"""From a form to a run: check in the planner, then start it once."""

from __future__ import annotations

import contextlib
import functools
import threading
from dataclasses import replace
from typing import Any

import streamlit as st

from lab.checked_run import CheckedRun
from lab.errors import SpecError
from lab.paths import RunDir
from lab.preflight import same_commits
from lab.preflight.client import planner
from lab.presets import Preset
from lab.runs import actions, index, submissions
from lab.ui import form_problems
from lab.ui.waiting import wait


def ticket() -> str:
    """This form's ticket. It is part of the URL, so that a reload keeps it."""
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
        actions.want_warm_worker()


def start(spec: dict[str, Any], ticket: str) -> RunDir | None:
    """The run, or None with the problems kept for their fields. Raises LabError."""
    runs = start_all([spec], ticket)
    return runs[0] if runs else None


def start_all(specs: list[dict[str, Any]], ticket: str) -> list[RunDir]:
    """A run for each spec, in this order; none, with the problems kept, if one of them has any.
    Clicking twice or reloading gives the same runs. Raises LabError."""
    run = submissions.run_of(ticket)
    if run is not None and not submissions.is_same(ticket, specs[0]):
        ticket = renew()  # the form was changed after its run had started
    tickets = [ticket, *(submissions.further(ticket, i) for i in range(1, len(specs)))]
    started = [
        submissions.run_of(draft) if submissions.is_same(draft, spec) else None
        for draft, spec in zip(tickets, specs, strict=True)
    ]
    checked: list[CheckedRun | None] = []
    label = "Checking the model, the data and the settings …"
    for spec, run in zip(specs, started, strict=True):
        try:
            first = next(filter(None, checked), None)
            check = functools.partial(same_commits.check, spec, first)
            checked.append(None if run else wait(label, check))
        except SpecError as error:
            form_problems.keep(error, spec)
            return []
    form_problems.forget()
    runs = []
    for run, answer, draft in zip(started, checked, tickets, strict=True):
        if run is None and answer is not None:
            run = submissions.start(_renamed(answer), draft)
        if run is not None:
            runs.append(run)
    return runs


def quick_start(preset: Preset) -> RunDir:
    """The preset's run; clicking twice or reloading gives the same one. Raises LabError."""
    draft = ticket()
    run = submissions.run_of(draft)
    if run is not None:
        return run
    with st.spinner("Checking the model and the data …"):
        checked = planner.check(preset.changes)
    return submissions.start(_renamed(checked), draft)


def _renamed(checked: CheckedRun) -> CheckedRun:
    """The run under a name that no other run has."""
    name = index.unused_name(checked.spec.name)
    return replace(checked, spec=replace(checked.spec, name=name))
