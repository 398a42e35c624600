"""Follow a run in the terminal: phase, progress, losses and time left."""

from __future__ import annotations

import time
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from lab.cli.console import console
from lab.formatting import duration
from lab.metrics import is_number
from lab.paths import RunDir
from lab.runs import actions, record_reader, supervisor_start
from lab.runs.status import Status, status


def follow(run: RunDir, label: str, *, quiet: bool = False) -> Status:
    """Show the run until it has ended; its last status. Silent without a terminal."""
    if quiet or not console.is_terminal:
        actions.wait(run)
        return status(run)
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
    )
    records: list[dict[str, Any]] = []
    offset = 0
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escape(label), total=None, note="starting")
        while True:
            run_status = status(run)
            new, offset = record_reader.read_lines(run.metrics, offset)
            records = [r for r in [*records, *new] if r.get("kind") in ("train", "eval")][-50:]
            progress.update(
                task,
                completed=run_status.done,
                total=run_status.total or None,
                note=escape(_note(run_status, records)),
            )
            if run_status.has_ended:
                return run_status
            supervisor_start.ensure_if_waiting()
            time.sleep(0.5)


def _note(run_status: Status, records: list[dict[str, Any]]) -> str:
    parts = [run_status.phase or run_status.state]
    if run_status.note:
        parts.append(run_status.note)
    elif run_status.total:
        parts.append(f"{run_status.unit} {run_status.done:g} of {run_status.total:g}")
    for kind, name in (("train", "train/loss"), ("eval", "eval/loss")):
        values = [r[name] for r in records if r.get("kind") == kind and is_number(r.get(name))]
        if values:
            parts.append(f"{name} {values[-1]:.3f}")
    if run_status.eta_s is not None:
        parts.append(f"{duration(run_status.eta_s)} left")
    return " · ".join(parts)


def progress_row(run_status: Status) -> list[list[str]]:
    """The row of a table that says how far a phase is; none where nothing is counted."""
    if not run_status.is_active or not run_status.total:
        return []
    words = run_status.note or f"{run_status.unit} {run_status.done:g} of {run_status.total:g}"
    if run_status.eta_s is not None:
        words += f", {duration(run_status.eta_s)} left"
    return [["progress", words]]
