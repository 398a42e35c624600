"""The top of the Monitor page: which run, how it goes, how far it is, what can be done."""

from __future__ import annotations

import streamlit as st

from lab import formatting, paths
from lab.advise import run_cost
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions, index, queue
from lab.runs.elapsed import elapsed_s, expected
from lab.runs.metric_series import series_of
from lab.runs.run_progress import Phase, RunProgress, run_progress
from lab.runs.status import RESUMABLE, status
from lab.ui import (
    cards,
    chat_memory_panel,
    colours,
    end_card,
    links,
    resume_panel,
    run_picker,
    run_state,
    titles,
)
from lab.ui.frame import end_page
from lab.ui.markdown_safety import escape_lines, escape_markdown, run_action


def choose() -> RunDir:
    """The run that the URL names, else the newest active or newest one. Without a run it says how
    to start one, and ends the page."""
    runs = paths.all_runs()
    if not runs:
        st.info("No runs yet. Start one, and it appears here.", icon=":material/info:")
        st.page_link(links.page("home"), label="Quick start", icon=":material/play_arrow:")
        st.page_link(links.page("new_run"), label="New run", icon=":material/add_circle:")
        end_page()
    run_id = st.query_params.get("run", "")
    ids = [run.id for run in runs]
    if run_id and run_id not in ids:
        st.warning(
            f"Run {escape_markdown(run_id[:80])} not found; showing another run.",
            icon=":material/warning:",
        )
    if run_id not in ids:
        active = index.active_runs()
        run_id = (active or runs)[0].id
    st.query_params["run"] = run_id
    return paths.run_dir(run_id)


def pick(run: RunDir) -> None:
    """The run that is shown, and a way to another one."""
    run_picker.choose([each.id for each in paths.all_runs()], run.id, "monitor.run")


def stage(run: RunDir) -> str:
    """As `run_picker.stage`, of the run as it is now."""
    return run_picker.stage(index.entry(run))


def state(run: RunDir) -> None:
    """Name and state, the phases with the time left, and the figures that matter now."""
    run_status = status(run)
    entry = index.entry(run)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"### {colours.dot(entry.colour)} {escape_markdown(entry.name or run.id)}",
            width="content",
        )
        cards.state_badge(run_status.state)
        st.caption(escape_markdown(_about(run, entry)), width="content")
    if run_status.is_active:
        _phases(run)
    if run_status.message:
        show = st.error if run_status.state in ("failed", "crashed", "stalled") else st.warning
        show(
            f"{escape_lines(run_status.message)}\n\n{escape_markdown(run_status.hint)}",
            icon=run_state.icon(run_status.state),
        )
    if series_of(run).train.length:
        if not run_status.has_ended:  # then they stand below the card of the end
            figures(run)
    elif not run_status.is_active:
        st.caption(NOTHING.get(run_status.state, "No training steps yet."))


NOTHING = {
    "queued": "Charts appear after the first step.",
    "cancelled": "Cancelled before the first step: there are no charts.",
    "stopped": "Stopped before the first step: there are no charts.",
    "failed": "It failed before the first step: there are no charts.",
    "crashed": "It ended before the first step: there are no charts.",
}


def _about(run: RunDir, entry: index.RunSummary) -> str:
    """ "LoRA · SmolLM2-135M-Instruct on Persona chats · 14 min ago", or its place in the queue."""
    if entry.status.state == "queued":
        line = [waiting.id for waiting in queue.waiting_runs()]
        if run.id in line:
            return f"number {line.index(run.id) + 1} in the queue"
    method = titles.method({"name": entry.method})
    trained_on = f"{titles.model(entry.model)} on {titles.dataset(entry.dataset)}"
    return f"{method} · {trained_on} · {formatting.when(entry.created)}"


ICONS = {"done": ":material/check:", "now": ":material/progress_activity:", "next": ""}


def _phases(run: RunDir) -> None:
    """The row of phases, and one bar over all of them that never runs back."""
    progress = run_progress(run)
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        st.markdown("\u2003".join(_phase(phase) for phase in progress.phases), width="content")
        st.markdown(f"about {formatting.duration(progress.left_s)} left", width="content")
    key = f"monitor.bar.{run.id}"
    attempt = series_of(run).train.attempt
    before = st.session_state.get(key) or (attempt, 0.0)
    shown = max(progress.fraction, before[1] if before[0] == attempt else 0.0)
    st.session_state[key] = attempt, shown
    st.html(bar(progress, shown))
    if (now := status(run)).note:  # bytes, files, speed and time left of a download
        st.caption(f":material/download: {escape_markdown(run_state.progress(now))}")
    if progress.text and progress.now is not None and progress.now.name == "sample":
        st.caption(escape_lines(progress.text))


def _phase(phase: Phase) -> str:
    """ "✓ Load", "● Training 36 of 60", "Save"."""
    if phase.state == "next":
        return f":gray[{phase.title}]"
    count = f" {phase.done:,.0f} of {phase.total:,.0f}" if phase.total else ""
    if phase.state == "done":
        return f"{ICONS['done']} {phase.title}"
    doing = f" · {escape_markdown(phase.doing)}" if phase.doing else ""
    return f"{ICONS['now']} **{phase.title}{doing}{count}**"


def bar(progress: RunProgress, fraction: float) -> str:
    """One bar for the whole run, cut into its phases by their seconds. Numbers and our own titles
    only: nothing of a person is in it."""
    whole = sum(phase.total_s for phase in progress.phases) or 1.0
    filled = fraction * whole
    cells = []
    for phase in progress.phases:
        share = max(0.0, min(1.0, filled / phase.total_s)) if phase.total_s else 1.0
        filled -= phase.total_s
        cells.append(
            f'<div title="{phase.title}" style="flex:{max(phase.total_s / whole, 0.004):.4f}">'
            f'<div style="width:{100 * share:.1f}%"></div></div>'
        )
    percent = round(100 * fraction)
    return (
        f'<div class="lab-phases" role="progressbar" aria-label="Whole run" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}">{"".join(cells)}</div>'
    )


def figures(run: RunDir) -> None:
    """Losses, speed, memory and time."""
    train, held_out = series_of(run).train, series_of(run).evaluation
    base = held_out.base["eval/loss"] if held_out.base else None
    final = held_out.last("eval/loss")
    values = [
        (
            "Evaluation loss",
            _number(final),
            f"{final - base:+.3f} vs base" if final is not None and base is not None
            else None,
        ),
        ("Training loss", _number(train.last("train/loss")), None),
        ("Tokens/s", _number(train.last("perf/tokens_per_s"), 0), None),
        ("Tokens", formatting.count(train.last("tokens")), None),
        ("Peak memory", formatting.size(train.last("memory/peak_bytes")), None),
    ]  # fmt: skip
    if train.has("perf/mfu"):
        share = train.last("perf/mfu")
        values.insert(3, ("MFU", "–" if share is None else formatting.percent(share), None))
    grid = st.grid(len(values) + 1, min_column_width=118, gap="small")
    for name, value, delta in values:
        grid.metric(name, value, delta, delta_color="inverse")
    runtime = expected(run, train.last("step"), train.last("seconds"))
    if not status(run).is_active:
        runtime = expected(run, None, None)  # what was said before it began
    estimated = f"{formatting.duration(runtime.whole_s)} estimated" if runtime else None
    grid.metric(
        "Run time", formatting.duration(elapsed_s(run)), estimated,
        delta_color="off", delta_arrow="off",
    )  # fmt: skip
    verb = "has cost so far" if status(run).is_active else "has cost"
    st.caption(escape_markdown(f"What this run {verb}: {run_cost.cost_of(run).in_words()}"))


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def buttons(run: RunDir) -> None:
    """What a person can do with a run that does not train, and what an ended one has gained."""
    run_status = status(run)
    with st.container(horizontal=True):
        if run_status.state == "queued":
            chat_memory_panel.offer(run_status.message, "monitor.free")
            if st.button("Remove from queue", icon=":material/close:", key="withdraw"):
                run_action(lambda: actions.command(run, "cancel"))
        elif run_status.state in RESUMABLE:
            resume_panel.buttons(run)
        elif run_status.state == "done":
            resume_panel.longer(run)
    end_card.show(run)
    if run_status.has_ended and series_of(run).train.length:
        figures(run)


def actions_while_active(run: RunDir) -> None:
    """Stop, save, cancel and kill, at the right of the page's title; nothing at rest."""
    if not status(run).is_active:
        return
    pending = {name for name in ("stop", "cancel", "kill") if (run.commands / name).exists()}
    if st.button(
        "Stop and save", icon=":material/stop_circle:", key="stop", disabled=bool(pending),
        help="Finishes this step, saves the model and stops; you can resume it later.",
    ):  # fmt: skip
        _command(run, "stop", "Stopping after this step …")
    if st.button(
        "Save", icon=":material/save:", key="save", disabled=bool(pending),
        help="Writes a checkpoint after this step; training continues.",
    ):  # fmt: skip
        _command(run, "save", "A checkpoint will be written after this step.")
    with st.popover(":material/more_horiz:", key="monitor.more", help="Cancel or kill the run"):
        st.markdown("Stop now and discard all progress since the last checkpoint?")
        if st.button(
            "Cancel the run", icon=":material/delete:", key="cancel",
            disabled=bool(pending & {"cancel", "kill"}),
        ):  # fmt: skip
            _command(run, "cancel", "Cancelling …")
        if pending:
            st.markdown(
                "It has not ended yet. Kill its process? All progress since the last checkpoint "
                "is lost."
            )
            if st.button(
                "Kill the process", icon=":material/bolt:", key="kill", disabled="kill" in pending
            ):
                _command(run, "kill", "Killing …")


def _command(run: RunDir, name: str, message: str) -> None:
    try:
        actions.command(run, name)
        st.toast(message)
    except LabError as error:
        st.toast(escape_markdown(str(error)))
    st.rerun()
