"""Below the charts of the Monitor page: samples, settings, checkpoints, memory, batch, log."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from lab import formatting, methods, schema
from lab.atomic_files import read_object
from lab.checked_run import read_forecast
from lab.forecasts import rows_in_words
from lab.paths import RunDir
from lab.runs import checkpoints, estimate_history, record_reader, resume_settings
from lab.spec import SECTIONS, RunSpec
from lab.ui import cards, checkpoint_panel, colours, data_view, end_card, monitor_view
from lab.ui.markdown_safety import escape_lines, escape_markdown, plain, run_action


def warnings(run: RunDir) -> None:
    for event in record_reader.events(run, "warning"):
        st.warning(escape_markdown(event.get("message", "")), icon=":material/warning:")


def samples(run: RunDir) -> None:
    """What the model says: the base, and the newest answer below it."""
    answers = end_card.samples(run)
    if not answers:
        return
    st.markdown("**Sample outputs**", help="One prompt, answered greedily as the model changes.")
    st.caption(escape_markdown(str(answers[-1].get("prompt", ""))))
    before = answers[0]["step"] == 0
    shown = [answers[0], *answers[1:][-2:]] if before else answers[-3:]
    for answer in shown:
        with st.container(border=True):
            is_base = before and answer is answers[0]
            title = f"{colours.BASE_DOT} before training" if is_base else f"step {answer['step']:,}"
            st.caption(title)
            st.markdown(escape_lines(str(answer.get("text", ""))) or "*(empty answer)*")


def tabs(run: RunDir) -> None:
    settings, saved, memory, batch, log = st.tabs(
        ["Settings", "Checkpoints", "Memory", "First batch", "Log"], key="monitor.tab",
        on_change="rerun",
    )  # fmt: skip
    for tab, draw in (
        (settings, _settings),
        (saved, _checkpoints),
        (memory, _memory_parts),
        (batch, data_view.first_batch),
        (log, _log),
    ):
        if tab.open:  # what is not seen is not drawn
            with tab:
                draw(run)


def _log(run: RunDir) -> None:
    text = plain(record_reader.tail(run.log, 20_000))
    st.code(text or "The worker has not written anything yet.", language=None, height=300)


def _checkpoints(run: RunDir) -> None:
    table = checkpoints.table(run)
    for checkpoint in table:
        _checkpoint(run, checkpoint)
    if not table:
        st.caption("No checkpoints.")


def _settings(run: RunDir) -> None:
    """What differs from the defaults, as a table; all of it, or the JSON, on request."""
    stored = read_object(run.spec) or {}
    with st.container(horizontal=True):
        shows_all = st.toggle("All settings", key="monitor.settings.all")
        shows_json = st.toggle("JSON", key="monitor.settings.json")
    changes = resume_settings.changes_of(run)
    if changes:
        st.caption(f"Changed when resumed: {escape_markdown(', '.join(changes))}")
    if shows_json:
        cards.json_code(stored)
        return
    rows = settings_table(stored, everything=shows_all)
    st.dataframe(plain(rows), hide_index=True, key=f"settings.{shows_all}")
    st.caption(f"Run ID: {run.id}")


def settings_table(stored: dict[str, Any], *, everything: bool = False) -> list[dict[str, str]]:
    """{Setting, Value, Default} of a stored spec: what was asked for otherwise than the default,
    with the value that it had in the run."""
    resolved = RunSpec.from_stored(stored)
    requested_spec = RunSpec.requested(stored)
    requested = RunSpec.from_stored(requested_spec) if requested_spec else resolved
    rows = []
    for title, value, requested_value, default in _fields(resolved, requested):
        if everything or requested_value != default:
            rows.append({"Setting": title, "Value": _cell(value), "Default": _cell(default)})
    return rows


def _fields(resolved: RunSpec, requested: RunSpec) -> list[tuple[str, Any, Any, Any]]:
    """(title, value in the run, value asked for, default) of every field."""
    defaults = RunSpec()
    fields: list[tuple[str, Any, Any, Any]] = []
    for name in ("model", "init_from_run"):
        title = next(f for f in dataclasses.fields(RunSpec) if f.name == name).metadata["title"]
        values = (getattr(spec, name) for spec in (resolved, requested, defaults))
        fields.append((title, *values))
    method = methods.get(resolved.method["name"])
    default_method = methods.get(defaults.method["name"]).title
    fields.append(("Method", method.title, method.title, default_method))
    for field in schema.describe(method.config):
        value = resolved.method.get(field.name, field.default)
        fields.append((field.title, value, value, field.default))
    for section, config in SECTIONS.items():
        sections = [getattr(spec, section) for spec in (resolved, requested, defaults)]
        for field in schema.describe(config):
            fields.append((field.title, *(getattr(part, field.name) for part in sections)))
    return fields


def _cell(value: Any) -> str:
    if value is None or value == "" or value == {}:
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return formatting.rate(value)
    return str(value)


def _checkpoint(run: RunDir, checkpoint: checkpoints.SavedCheckpoint) -> None:
    """One checkpoint: its size and loss, to keep or to remove."""
    step, pinned = checkpoint.step, checkpoint.pinned
    with st.container(horizontal=True, vertical_alignment="center"):
        measured = checkpoint_panel.loss_in_words(run, step, checkpoint.eval_loss)
        st.markdown(f"Step {step:,} · {formatting.size(checkpoint.bytes)}{measured}")
        checkpoint_panel.actions(run, step, "listed")
        label = "Unpin" if pinned else "Pin"
        if st.button(label, icon=":material/keep:", key=f"pin.{run.id}.{step}"):
            run_action(lambda: checkpoints.pin(run, step, keep=not pinned))
        if not pinned and monitor_view.stage(run) == "ended":
            if st.button("Delete", icon=":material/delete:", key=f"drop.{run.id}.{step}"):
                run_action(lambda: checkpoints.delete(run, step))


def _memory_parts(run: RunDir) -> None:
    """Estimated beside measured memory, part by part, and how far off estimates here have been."""
    rows = estimate_history.measured_parts(run)
    if not rows:
        st.caption("Measured after the first step.")
        return
    st.dataframe(
        [
            {
                "Part": row.name,
                "Estimated": formatting.size(row.predicted),
                "Measured": formatting.size(row.measured),
            }
            for row in rows
        ],
        hide_index=True,
    )
    forecast = read_forecast(run)
    if basis := rows_in_words(forecast.settings):
        st.caption(f"Estimated for the {basis}.")
    if forecast.memory.has_margin:
        st.caption(
            "On a CPU the estimate includes a margin for memory other than tensors. It "
            "is not an upper bound: a run may take more."
        )
    history = estimate_history.error_history(forecast.device)
    if history is not None:
        st.caption(f"On this machine, {history.in_words}.")
