"""The parts of the Monitor page."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab import formatting, paths
from lab.atomic_files import number, read_object, size_of
from lab.checked_run import read_forecast
from lab.errors import LabError
from lab.paths import RunDir
from lab.recent import Recent
from lab.runs import actions, checkpoints, estimate_history, index, record_reader, resume_settings
from lab.runs.elapsed import elapsed_s, expected
from lab.runs.metric_series import AXES, MetricSeries, series_of
from lab.runs.status import RESUMABLE, status
from lab.ui import cards, charts, links, resume_panel, run_state
from lab.ui.chart_style import View, is_dark
from lab.ui.markdown_safety import escape_lines, escape_markdown, plain, run_action

TITLES = {"step": "Steps", "tokens": "Tokens", "seconds": "Seconds"}


def choose() -> RunDir | None:
    """The run that the URL names, else the newest active or newest one; a list to change it."""
    runs = paths.all_runs()
    if not runs:
        return None
    run_id = st.query_params.get("run", "")
    ids = [run.id for run in runs]
    if run_id and run_id not in ids:
        st.warning(
            f"There is no run {escape_markdown(run_id[:80])}. Showing another one.",
            icon=":material/warning:",
        )
    if run_id not in ids:
        active = index.active_runs()
        run_id = (active or runs)[0].id
    st.session_state["monitor.run"] = run_id

    def change() -> None:
        st.query_params["run"] = st.session_state["monitor.run"]

    chosen: str = st.selectbox(
        "Run",
        ids,
        key="monitor.run",
        format_func=_title,
        on_change=change,
        label_visibility="collapsed",
    )
    st.query_params["run"] = chosen
    return paths.run_dir(chosen)


def _title(run_id: str) -> str:
    try:
        entry = index.entry(paths.run_dir(run_id))
    except LabError:
        return run_id
    return str(plain(f"{entry.name or entry.method} · {run_id}"))


def stage(run: RunDir) -> str:
    """queued, active or ended: what can be done differs between them, and only between them."""
    run_status = status(run)
    if run_status.state == "queued":
        return "queued"
    return "active" if run_status.is_active else "ended"


def controls() -> View:
    """How to look at the charts; kept while the session lasts."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        by = st.segmented_control(
            "By",
            list(AXES),
            format_func=TITLES.get,
            default="step",
            key="monitor.by",
            required=True,
            persist_state="session",
        )
        smoothing = st.slider(
            "Smoothing", 0.0, 0.95, 0.6, 0.05, key="monitor.smooth", width=220,
            persist_state="session",
        )  # fmt: skip
        log = st.toggle("Log loss", key="monitor.log", persist_state="session")
    return View(str(by), float(smoothing), bool(log), is_dark())


def state(run: RunDir) -> None:
    """State, progress, time left, and the figures that matter now."""
    run_status = status(run)
    series = series_of(run)
    train, held_out = series.train, series.evaluation
    with st.container(horizontal=True, vertical_alignment="center"):
        cards.state_badge(run_status.state)
        if run_status.state == "queued":
            st.caption("waiting in the queue")
        else:
            st.caption(
                escape_markdown(run_state.progress(run_status))
                if run_status.is_active
                else escape_markdown(_ended(run))
            )
    if run_status.is_active:
        st.progress(run_status.fraction)
    if run_status.message:
        show = st.error if run_status.state in ("failed", "crashed", "stalled") else st.warning
        show(
            f"{escape_lines(run_status.message)}\n\n{escape_markdown(run_status.hint)}",
            icon=run_state.icon(run_status.state),
        )
    base = held_out.base["eval/loss"] if held_out.base else None
    final = held_out.last("eval/loss")
    figures = [
        ("Train loss", _number(train.last("train/loss")), None),
        (
            "Evaluation loss",
            _number(final),
            f"{final - base:+.3f} to base" if final is not None and base is not None else None,
        ),
        ("Tokens/s", _number(train.last("perf/tokens_per_s"), 0), None),
        ("Tokens", formatting.count(train.last("tokens")), None),
        ("Peak memory", formatting.size(train.last("memory/peak_bytes")), None),
        ("Run time", formatting.duration(elapsed_s(run)), None),
    ]
    runtime = expected(run, train.last("step"), train.last("seconds"))
    if runtime and not run_status.is_active:
        runtime = expected(run, None, None)  # what was said before it began
    predicted = f"{formatting.duration(runtime.whole_s)} predicted" if runtime else None
    if train.has("perf/mfu"):
        share = train.last("perf/mfu")
        figures.insert(3, ("Utilisation", "–" if share is None else f"{share:.0%}", None))
    grid = st.grid(len(figures), min_column_width=120, gap="small")
    for name, value, delta in figures:
        if name == "Run time":
            grid.metric(name, value, predicted, delta_color="off", delta_arrow="off")
        else:
            grid.metric(name, value, delta, delta_color="inverse")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _ended(run: RunDir) -> str:
    entry = index.entry(run)
    steps = entry.summary.get("step")
    result = size_of(run.artifact)
    parts = [f"{entry.method} on {entry.dataset.split('/')[-1]}", formatting.when(entry.created)]
    if steps:
        parts.append(f"{steps:,} steps")
    if result:
        parts.append(f"result {formatting.size(result)}")
    return " · ".join(parts)


def buttons(run: RunDir) -> None:
    """What a person can do now."""
    run_status = status(run)
    with st.container(horizontal=True):
        if run_status.is_active:
            commands = ("stop", "cancel", "kill")
            pending = {name for name in commands if (run.commands / name).exists()}
            if st.button(
                "Stop and save", icon=":material/stop_circle:", key="stop", disabled=bool(pending),
                help="Ends after this step and keeps the result; it can be resumed. It is given "
                "the time that it needs, as long as it shows signs of life.",
            ):  # fmt: skip
                _command(run, "stop", "Stopping after this step …")
            if st.button("Save now", icon=":material/save:", key="save", disabled=bool(pending)):
                _command(run, "save", "A checkpoint will be written after this step.")
            is_cancelled = bool(pending & {"cancel", "kill"})
            with st.popover("Cancel", icon=":material/cancel:", disabled=is_cancelled):
                st.markdown("End it and throw away what it has learned since the last checkpoint?")
                if st.button("Yes, cancel the run", type="primary", key="cancel"):
                    _command(run, "cancel", "Cancelling …")
            if pending:
                with st.popover("Kill now", icon=":material/bolt:", disabled="kill" in pending):
                    st.markdown(
                        "It has not ended yet. Kill its process? What it has learned since the "
                        "last checkpoint is lost."
                    )
                    if st.button("Yes, kill it", type="primary", key="kill"):
                        _command(run, "kill", "Killing …")
        elif run_status.state == "queued":
            if st.button("Withdraw", icon=":material/close:", key="withdraw"):
                run_action(lambda: actions.command(run, "cancel"))
        else:
            if run_status.state in RESUMABLE:
                resume_panel.buttons(run)
            elif run_status.state == "done":
                resume_panel.longer(run)
            if run.artifact.is_dir():
                st.page_link(
                    links.page("chat"), label="Chat with it", icon=":material/forum:",
                    query_params={"run": run.id}, width="content",
                )  # fmt: skip
            st.page_link(
                links.page("new_run"), label="Run it again", icon=":material/replay:",
                query_params={"from": run.id}, width="content",
            )  # fmt: skip
            if run.artifact.is_dir():
                st.page_link(
                    links.page("new_run"), label="Train on from it", icon=":material/step_into:",
                    query_params={"from": run.id, "on": "1"}, width="content",
                )  # fmt: skip


def _command(run: RunDir, name: str, message: str) -> None:
    try:
        actions.command(run, name)
        st.toast(message)
    except LabError as error:
        st.toast(escape_markdown(str(error)))
    st.rerun()


Charts = dict[str, tuple[str, Any]]  # key → (title, figure)
_drawn: Recent[tuple[str, View], tuple[Any, Charts]] = Recent(24)


def charts_of(series: MetricSeries, view: View) -> Charts:
    """Every chart that there is something to draw for.

    Drawn once for all who look at the same run in the same way, until there is something new.
    """
    key = (series.run.id, view)
    with series.lock:  # another viewer's refresh would lengthen one column before the next
        version = (
            series.train.attempt,
            series.train.length,
            series.evaluation.length,
            series.device.length // 5,
        )
        cached = _drawn.get(key)
        if cached is None or cached[0] != version:
            cached = _drawn.put(key, (version, _draw(series, view)))
    return cached[1].copy()


def pace(run: RunDir) -> float:
    """Seconds between two looks at the charts: there is nothing new before the next step."""
    step_s = number(series_of(run).train.last("perf/step_s")) or 1.0
    return float(min(5, max(1, round(step_s))))


def _draw(series: MetricSeries, view: View) -> dict[str, tuple[str, Any]]:
    train, device = series.train, series.device
    figures: dict[str, tuple[str, Any]] = {"loss": ("Loss", charts.loss(series, view))}
    if device.length:
        figures["memory"] = ("Memory", charts.memory(series, view))
    for key, title, axis in (
        ("perf/tokens_per_s", "Throughput", "tokens/s"),
        ("train/learning_rate", "Learning rate", "learning rate"),
        ("train/grad_norm", "Gradient norm", "gradient norm (before clipping)"),
    ):
        if train.has(key):
            figures[title.lower().replace(" ", "-")] = (
                title,
                charts.single(series, key, axis, view),
            )
    if device.has("nvml/power_w"):
        figures["power"] = ("Power", charts.power(series, view))
    return figures


def show_charts(run: RunDir, view: View) -> None:
    series = series_of(run)
    if not series.train.length and series.evaluation.base is None:
        st.info(
            "The curves begin with the first step. Until then the worker imports its libraries, "
            "loads the model and measures the base.",
            icon=":material/hourglass_top:",
        )
        return
    figures = charts_of(series, view)
    _chart("loss", *figures.pop("loss"), run)
    grid = st.grid(2, min_column_width=360)
    for key, (title, figure) in figures.items():
        with grid.cell():
            _chart(key, title, figure, run)


def _chart(key: str, title: str, figure: Any, run: RunDir) -> None:
    st.markdown(f"**{title}**")
    st.plotly_chart(
        figure,
        key=f"chart.{key}.{run.id}",
        theme=None,
        config=charts.CONFIG,
        alt=f"{title} of run {run.id}",
    )


def _checkpoint(run: RunDir, checkpoint: dict[str, Any]) -> None:
    """One checkpoint: its size and loss, to keep or to remove."""
    step, pinned = checkpoint["step"], checkpoint["pinned"]
    with st.container(horizontal=True, vertical_alignment="center"):
        eval_loss = checkpoint["eval_loss"]
        measured = "" if eval_loss is None else f" · evaluation loss {eval_loss:.3f}"
        st.markdown(f"Step {step:,} · {formatting.size(checkpoint['bytes'])}{measured}")
        label = "Unpin" if pinned else "Pin"
        if st.button(label, icon=":material/keep:", key=f"pin.{run.id}.{step}"):
            run_action(lambda: checkpoints.pin(run, step, keep=not pinned))
        if not pinned and stage(run) == "ended":
            if st.button("Delete", icon=":material/delete:", key=f"drop.{run.id}.{step}"):
                run_action(lambda: checkpoints.delete(run, step))


def _memory_parts(run: RunDir) -> None:
    """Predicted beside measured memory, part by part, and how the predictions here have done."""
    rows = estimate_history.measured_parts(run)
    if not rows:
        return
    with st.expander("Memory, predicted and measured", icon=":material/memory_alt:"):
        st.dataframe(
            [
                {
                    "part": row.name,
                    "predicted": formatting.size(row.predicted),
                    "measured": formatting.size(row.measured),
                }
                for row in rows
            ],
            hide_index=True,
        )
        forecast = read_forecast(run)
        if forecast.memory.is_bound:
            st.caption("On a CPU the prediction is a bound on the resident memory.")
        history = estimate_history.error_history(forecast.device)
        if history is not None:
            st.caption(
                f"Finished runs here: {len(history.errors)}, median distance "
                f"{history.median:.1%}, largest {history.worst:.1%}."
            )


def words(run: RunDir) -> None:
    """Samples, warnings, the log, the settings, and the figures as a file."""
    events = record_reader.events(run)
    for event in events:
        if event.get("kind") == "warning":
            st.warning(escape_markdown(event.get("message", "")), icon=":material/warning:")
    samples = [event for event in events if event.get("kind") == "sample"]
    if samples:
        st.subheader("What it says", anchor=False)
        st.caption(escape_markdown(samples[-1].get("prompt", "")))
        for event in samples[-4:]:
            with st.container(border=True):
                st.caption(escape_markdown(f"step {event.get('step')}"))
                st.markdown(escape_lines(str(event.get("text", ""))) or "*(nothing)*")
    with st.expander("Log", icon=":material/terminal:"):
        st.code(plain(record_reader.tail(run.log, 20_000)) or "(empty)", language=None, height=300)
    _memory_parts(run)
    saved = checkpoints.table(run)
    if saved:
        with st.expander(f"Checkpoints ({len(saved)})", icon=":material/save:"):
            for checkpoint in saved:
                _checkpoint(run, checkpoint)
    with st.expander("Settings of this run", icon=":material/settings:"):
        changes = resume_settings.changes_of(run)
        if changes:
            st.caption("Changed on resuming")
            st.json(plain(changes))
        st.json(plain(read_object(run.spec) or {}), expanded=1)
