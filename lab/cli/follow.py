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
from lab.runs import launch, record_reader, supervisor
from lab.runs.status import Status, status


def follow(run: RunDir, label: str, *, quiet: bool = False) -> Status:
    """Show the run until it has ended; its last status. Silent where nobody looks."""
    if quiet or not console.is_terminal:
        launch.wait(run)
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
            now = status(run)
            new, offset = record_reader.read_lines(run.metrics, offset)
            records = [r for r in [*records, *new] if r.get("kind") in ("train", "eval")][-50:]
            progress.update(
                task, completed=now.done, total=now.total or None, note=escape(_note(now, records))
            )
            if now.has_ended:
                return now
            supervisor.ensure_if_waiting()
            time.sleep(0.5)


def _note(now: Status, records: list[dict[str, Any]]) -> str:
    parts = [now.phase or now.state]
    if now.note:
        parts.append(now.note)
    elif now.total:
        parts.append(f"{now.unit} {now.done:g} of {now.total:g}")
    for kind, name in (("train", "train/loss"), ("eval", "eval/loss")):
        values = [r[name] for r in records if r.get("kind") == kind and is_number(r.get(name))]
        if values:
            parts.append(f"{name} {values[-1]:.3f}")
    if now.eta_s is not None:
        parts.append(f"{duration(now.eta_s)} left")
    return " · ".join(parts)
