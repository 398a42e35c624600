"""The fastest settings that fit a device, asked for by a button, and taken over by another."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from lab import formatting, host
from lab.errors import LabError, SpecError
from lab.forecasts import Candidate, SettingsSearch, checkpointed_layers
from lab.preflight.client import planner
from lab.spec import RunSpec
from lab.ui import form, form_problems
from lab.ui.markdown_safety import escape_markdown, tell
from lab.ui.waiting import wait

MAX_SHOWN, MAX_SHOWN_NARROW = 6, 3  # choices in a table, in a narrow column


def for_form() -> None:
    """On New run: look for faster settings of what the form describes, on this machine."""
    if st.button(
        "Find the fastest settings that fit", key="plan", width="stretch",
        disabled=bool(form_problems.blocking()),
    ):  # fmt: skip
        # a run in 16 bits is for this processor, too, where there is nothing else
        spec = form.value()
        _ask(spec, {} if host.gpus() else {"kind": "cpu"}, "new.choices", spec)
    search = _answer("new.choices", form.value())
    if search is None:
        return
    show(search, is_narrow=True)
    best = search.candidates[0]
    if best.fits:
        st.button(
            "Apply option 1", key="plan.take", icon=":material/check:", on_click=_take,
            args=(best.changes(),),
        )  # fmt: skip


def for_device(spec: dict[str, Any], device: dict[str, Any]) -> None:
    """On Memory: the same for any model and device."""
    if st.button("Find the fastest settings that fit", key="memory.plan"):
        _ask(spec, device, "memory.choices", [spec, device])
    search = _answer("memory.choices", [spec, device])
    if search is not None:
        show(search)


def _answer(session_key: str, question: Any) -> SettingsSearch | None:
    """The answer under that key of the session, if it is that to `question`."""
    answered, search = st.session_state.get(session_key) or (None, None)
    return search if answered == question else None


def _ask(spec: dict[str, Any], device: dict[str, Any], session_key: str, question: Any) -> None:
    st.session_state[session_key] = None
    try:
        search = wait("Comparing settings …", lambda: planner.plan(spec, device))
        st.session_state[session_key] = question, search
    except SpecError as error:
        if session_key == "new.choices":
            form_problems.keep(error, spec)
            st.rerun()
        tell(error)
    except LabError as error:
        tell(error)


def _take(changes: dict[str, Any]) -> None:
    spec = RunSpec.parse(form.value(), [])
    train = {key.removeprefix("train."): value for key, value in changes.items()}
    form.load(dataclasses.replace(spec, train=dataclasses.replace(spec.train, **train)))


def show(search: SettingsSearch, *, is_narrow: bool = False) -> None:
    """The choices, the best first, and what their speeds rest on."""
    candidates = search.candidates[:MAX_SHOWN]
    if is_narrow:
        for rank, candidate in enumerate(candidates[:MAX_SHOWN_NARROW], 1):
            st.markdown(
                f"{rank}. **{candidate.tokens_per_s:,.0f} tokens/s**, "
                f"{formatting.size(candidate.peak_bytes)}: {_words(candidate)}; "
                f"{escape_markdown(candidate.why)}"
            )
    else:
        _table(candidates)
    if search.is_measured:
        basis = "Speeds are calibrated on this machine's finished runs."
    else:
        reached = formatting.percent(search.reached)
        basis = f"Speeds assume {reached} of the device's peak FLOP/s (a typical MFU)."
    st.caption(
        f"All options have the same effective batch size. {formatting.percent(search.reserve)} of "
        f"{formatting.size(search.device_bytes)} stays free. Estimated for the {search.rows}. "
        f"torch.compile: {escape_markdown(search.compile)}. {basis}"
    )


def _words(candidate: Candidate) -> str:
    return (
        f"batch size {candidate.batch_size} × accumulation "
        f"{candidate.gradient_accumulation_steps}, checkpointed layers: "
        f"{checkpointed_layers(candidate)}, {candidate.loss_implementation} loss, "
        f"{candidate.optimizer}"
    )


def _table(candidates: tuple[Candidate, ...]) -> None:
    st.dataframe(
        [
            {
                "batch × accumulation": f"{candidate.batch_size} × "
                f"{candidate.gradient_accumulation_steps}",
                "tokens/s": candidate.tokens_per_s,
                "peak memory (GB)": candidate.peak_bytes / 1e9,
                "checkpointed layers": checkpointed_layers(candidate),
                "loss": candidate.loss_implementation,
                "optimizer": candidate.optimizer,
                "note": candidate.why,
            }
            for candidate in candidates
        ],
        hide_index=True,
        column_config={
            "tokens/s": st.column_config.NumberColumn(format="%.0f", width="small"),
            "peak memory (GB)": st.column_config.NumberColumn(format="%.2f", width="small"),
        },
    )
