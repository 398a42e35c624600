"""The bar at the bottom of New run: what would be trained, what it costs, what is wrong, Start."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab import formatting, methods
from lab.errors import LabError, SpecError
from lab.forecasts import Forecast, rows_in_words
from lab.preflight.client import planner
from lab.runs import index, queue
from lab.spec import RunSpec
from lab.ui import (
    estimate_panel,
    form,
    form_problems,
    links,
    memory_changes,
    method_card,
    submit,
    titles,
)
from lab.ui.markdown_safety import escape_markdown, tell
from lab.ui.waiting import wait

STARTING, ERROR, CHECKED = "new.starting", "new.error", "new.checked"


def draw(spec: RunSpec, ticket: str) -> None:
    """Always in sight. Start is out of use while a value cannot be, or while it is at work."""
    specs = method_card.specs()
    with st.bottom:
        row = st.container(
            horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
        )
        with row.container(width="stretch", gap="xsmall"):
            _words(spec, specs)
        is_starting = bool(st.session_state.get(STARTING))
        is_blocked = is_starting or bool(form_problems.blocking())
        with row.container(horizontal=True, width="content"):
            checks = st.button("Check settings", key="check", disabled=is_blocked)
            label = "Start both" if len(specs) > 1 else "Start run"
            st.button(
                "Starting …" if is_starting else label, key="start", type="primary",
                icon=":material/play_arrow:", disabled=is_blocked, on_click=_begin,
            )  # fmt: skip
        if is_starting:
            _start(specs, ticket)
        elif checks:
            _check(specs[0])


def _begin() -> None:
    st.session_state[STARTING] = True


def _start(specs: list[dict[str, Any]], ticket: str) -> None:
    st.session_state[STARTING] = False  # a run of the page that is given up leaves it usable
    try:
        runs = submit.start_all(specs, ticket)
    except LabError as error:
        st.session_state[ERROR] = {"for": specs, "message": error.message, "hint": error.hint}
        st.rerun()
    if not runs:
        st.rerun()  # each problem stands under its field
    if len(runs) > 1:
        links.open_comparison([run.id for run in runs])
    links.open_run(runs[0].id)


def _words(spec: RunSpec, specs: list[dict[str, Any]]) -> None:
    problems = form_problems.of_fields()
    if problems:
        count = formatting.quantity(len(problems), "problem")
        first = form_problems.sentence(*next(iter(problems.items())))
        st.markdown(f":red[:material/error: **{count}:** {first}]")
        return
    st.markdown(_what(spec, specs))
    error = st.session_state.get(ERROR)
    if error and error["for"] == specs:
        st.markdown(f":red[:material/error: {escape_markdown(error['message'])}]")
        st.caption(escape_markdown(error["hint"]))
        return
    st.markdown(" · ".join([*_costs(specs), _queue()]))
    too_large = next((spec for spec in specs if _is_too_large(spec)), None)
    if too_large is not None:
        estimate = estimate_panel.job_for(too_large).estimate
        memory_changes.popover(too_large, estimate.device_bytes if estimate else None)


def _is_too_large(spec: dict[str, Any]) -> bool:
    estimate = estimate_panel.job_for(spec).estimate
    return estimate is not None and estimate.memory.fits is False


def _what(spec: RunSpec, specs: list[dict[str, Any]]) -> str:
    """ "LoRA r16 · SmolLM2-135M-Instruct on Persona chats · 60 steps at 1e-3"."""
    train = spec.train
    names = " against ".join(f"**{escape_markdown(titles.method(s['method']))}**" for s in specs)
    limits = {
        "max_steps": lambda steps: formatting.quantity(steps, "step"),
        "max_tokens": lambda tokens: formatting.quantity(tokens, "token"),
        "max_seconds": formatting.duration,
        "max_flops": formatting.flops,
    }
    lengths = [
        in_words(getattr(train, name))
        for name, in_words in limits.items()
        if getattr(train, name) is not None
    ]
    epochs = "1 epoch" if train.epochs == 1 else f"{train.epochs:g} epochs"
    rates = [rate_in_words(s["train"]["learning_rate"], s["method"]["name"]) for s in specs]
    text = (
        f"{names} · {escape_markdown(titles.model(spec.model))} on "
        f"{escape_markdown(titles.dataset(spec.data.dataset))} · "
        f"{' or '.join(lengths) or epochs} at {' and '.join(rates)}"
    )
    return f"{text} · from the weights of {escape_markdown(spec.init_from_run)}" if (
        spec.init_from_run
    ) else text  # fmt: skip


def rate_in_words(rate: Any, method: str) -> str:
    if isinstance(rate, (int, float)):
        return formatting.rate(float(rate))
    return f"{formatting.rate(methods.get(method).default_lr)} (default)"


def _costs(specs: list[dict[str, Any]]) -> list[str]:
    """Time, memory and disk of the run, or of both together; greyed while they are worked out."""
    jobs = [estimate_panel.job_for(spec) for spec in specs]
    known = [job.estimate for job in jobs if job.estimate]
    if any(job.is_complete and not job.estimate for job in jobs):
        return [":gray[no estimate]"]  # the card of the memory says why
    if len(known) < len(specs):
        last = st.session_state.get("new.bar")
        return [f":gray[{last} · recalculating …]" if last else ":gray[Estimating …]"]
    parts = []
    runtimes = [estimate.runtime for estimate in known if estimate.runtime]
    if len(runtimes) == len(known):
        seconds = sum(runtime.whole_s for runtime in runtimes)
        about = "" if all(runtime.is_measured for runtime in runtimes) else "about "
        parts.append(f":material/timer: {about}{formatting.duration(seconds)}")
    parts.append(_memory(max(known, key=lambda estimate: estimate.memory.peak_bytes)))
    disks = [estimate.disk.total for estimate in known if estimate.disk]
    if disks:
        parts.append(f":material/hard_drive: {formatting.size(sum(disks))}")
    st.session_state["new.bar"] = " · ".join(parts)
    return parts


def _memory(estimate: Forecast) -> str:
    peak, free = estimate.memory.peak_bytes, estimate.device_bytes
    if not free:
        return f":material/memory_alt: {formatting.size(peak)}"
    if estimate.memory.fits is False:
        return f":red[:material/memory_alt: needs {peak / 1e9:.1f} of {free / 1e9:.1f} GB]"
    return f":material/memory_alt: {peak / 1e9:.1f} of {free / 1e9:.1f} GB"


def _queue() -> str:
    """When it would start."""
    waiting = len(queue.waiting_runs())
    if queue.settings().paused:
        return "the queue is paused"
    if waiting:
        return f"{formatting.quantity(waiting, 'run')} before it"
    return "starts after the run that trains now" if index.active_runs() else "starts at once"


def _check(spec: dict[str, Any]) -> None:
    """Ask the planner about the form as it is; keep what it says."""
    st.session_state[CHECKED] = None
    try:
        checked = wait(
            "Checking the model, the data and the settings …", lambda: planner.check(spec)
        )
    except SpecError as error:
        form_problems.keep(error, spec)
        st.rerun()
    except LabError as error:
        tell(error)
        return
    form_problems.forget()
    st.session_state[CHECKED] = spec, checked
    st.rerun()


def checked_model() -> str:
    """The model that the last check found, with its commit; "" once the form has changed."""
    spec, checked = st.session_state.get(CHECKED) or (None, None)
    return "" if checked is None or spec != form.value() else checked.spec.model


def show_checked() -> None:
    """CHECKED: what the last check found, as long as the form is still the same."""
    spec, checked = st.session_state.get(CHECKED) or (None, None)
    if checked is None or spec != form.value():
        return
    stats, memory = checked.stats, checked.forecast.memory
    rows = rows_in_words(checked.forecast.settings)
    rows = f" · memory for the {rows}" if rows else ""
    with st.container(border=True):
        st.caption("CHECKED")
        st.markdown(":material/check_circle: Ready to start.")
        for warning in stats.warnings:
            st.markdown(f":material/lightbulb: {escape_markdown(warning)}")
        st.caption(
            f"{formatting.count(memory.trainable)} of {formatting.count(memory.parameters)} "
            f"parameters are trainable · {formatting.quantity(stats.examples, 'example')}, about "
            f"{stats.tokens_per_row:.0f} tokens each, {stats.loss_tokens_per_row:.0f} of them "
            f"trained{rows}"
        )
