"""A claim put to the test from its panel: the forecast, the two runs, how far they are, Stop."""

from __future__ import annotations

import streamlit as st

from lab import formatting
from lab.advise import experiments
from lab.advise.claims import Claim
from lab.advise.experiments import Experiment, ExperimentOutcome
from lab.compare import ready_races
from lab.paths import RunDir
from lab.runs import index
from lab.ui import links
from lab.ui.markdown_safety import escape_markdown, user_errors
from lab.ui.waiting import wait

PLANNED = "claims.planned"  # (name, seconds) of the experiment that is to be confirmed
VERSIONS_OF = ("torch", "transformers", "peft")


def show(claim: Claim) -> None:
    """The races and the experiment that put the claim to the test; nothing where there is none."""
    for ready in ready_races.of_claim(claim.id):
        st.page_link(
            links.page("race"), label=f"Race it here: {escape_markdown(ready.title)}",
            icon=":material/flag:", query_params={"ready": ready.name},
        )  # fmt: skip
    experiment = experiments.of_claim(claim.id)
    if experiment is None:
        return
    outcome = experiments.stored(experiment)
    # once it was tested, the question stands in the finding
    question = "" if outcome else experiment.question
    st.markdown(f"**{escape_markdown(experiment.title)}** {escape_markdown(question)}")
    runs = experiments.newest_pair(experiment)
    if experiments.is_under_way(runs):
        _progress(experiment, runs)
        return
    if outcome is not None:
        st.caption(escape_markdown(f"Tested {_origin(outcome)}"))
    if st.button(
        "Test it again" if outcome else "Test it here", key=f"claims.test.{claim.id}",
        icon=":material/science:",
        help="Two short runs; how long they take is shown before they start.",
    ):  # fmt: skip
        with user_errors():
            seconds = wait("Forecasting both runs …", lambda: experiments.forecast_s(experiment))
        st.session_state[PLANNED] = (experiment.name, seconds)
    name, seconds = st.session_state.get(PLANNED, ("", None))
    if name == experiment.name:
        _confirm(experiment, seconds)


def _progress(experiment: Experiment, runs: list[RunDir]) -> None:
    for run in runs:
        entry = index.entry(run)
        state = entry.status
        steps = f" · {state.done:,.0f} of {state.total:,.0f} {state.unit}" if state.total else ""
        text = escape_markdown(f"{entry.name}: {state.state}{steps}")
        st.progress(1.0 if state.has_ended else state.fraction, text=text)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Stop the test", key="claims.stop", icon=":material/stop:"):
            with user_errors():
                experiments.stop(experiment)
        st.page_link(
            links.page("monitor"), label="Watch on Monitor", icon=":material/monitoring:",
            query_params={"run": next(
                (run.id for run in runs if not index.entry(run).status.has_ended), runs[0].id
            )},
        )  # fmt: skip


def _origin(outcome: ExperimentOutcome) -> str:
    """ "2026-11-26 with torch 2.13.0, transformers 5.23.0, peft 0.21.2"."""
    known = [name for name in VERSIONS_OF if name in outcome.versions]
    return f"{outcome.date} with {', '.join(f'{name} {outcome.versions[name]}' for name in known)}"


def _confirm(experiment: Experiment, seconds: float | None) -> None:
    about = f"about {formatting.duration(seconds)}" if seconds else "an unknown time"
    st.markdown(f"Both runs take {about} on this machine.")
    if st.button("Queue both runs", key="claims.queue", type="primary"):
        with user_errors():
            wait("Checking both runs …", lambda: experiments.start(experiment))
        st.session_state.pop(PLANNED, None)
        st.rerun()
