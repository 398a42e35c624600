"""The queue: which runs wait, in which order, and what holds them back.

A run waits if its directory has a `queue.json` and neither a process nor a result. The queue's
settings lie in `LAB_HOME/queue/settings.json`, written by pages and command line.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import paths, schema
from lab.atomic_files import finite_number, read_object, write_json
from lab.errors import LabError, SpecError
from lab.paths import RunDir
from lab.runs.result import Result, write_result
from lab.runs.status import status
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    paused: bool = option(False, "Paused", "Start no new runs; running ones continue.")
    at_once: int = option(
        1,
        "Concurrent runs",
        "How many runs may train at once, if their estimated memory fits. Two on one CPU slow "
        "each other down.",
        min=1,
        max=64,
    )
    spare: bool = option(
        True,
        "Keep a warm worker",
        "While someone fills in the form, keep a worker with its libraries loaded, so the run "
        "starts at once. Uses about 0.5 GB of memory.",
    )
    continue_after_failure: bool = option(
        True,
        "Continue after a failure",
        "Start the next run when one fails; otherwise pause the queue.",
    )


def describe() -> list[schema.FieldDescription]:
    """The queue's settings with their help, for forms."""
    return schema.describe(QueueSettings)


def folder() -> Path:
    return paths.home() / "queue"


def settings() -> QueueSettings:
    stored = read_object(folder() / "settings.json") or {}
    known = {key: value for key, value in stored.items() if key in asdict(QueueSettings())}
    return schema.parse(QueueSettings, known, "queue", [])


def change(**values: Any) -> QueueSettings:
    """Change settings of the queue. Raises SpecError for a value that it cannot take."""
    problems: list[Any] = []
    new_settings = schema.parse(QueueSettings, asdict(settings()) | values, "queue", problems)
    if problems:
        raise SpecError(problems)
    paths.make_folder(folder())
    write_json(folder() / "settings.json", asdict(new_settings))
    return new_settings


def waiting_runs() -> list[RunDir]:
    """The runs that wait, the next one first: by priority, then by order."""
    entries = []
    for run in paths.all_runs():
        if run.result.exists() or run.process.exists():
            continue
        queue_entry = read_object(run.queue)
        if queue_entry is not None:
            entries.append(
                (
                    -_number(queue_entry.get("priority")),
                    _number(queue_entry.get("order")),
                    run.id,
                    run,
                )
            )
    return [entry[-1] for entry in sorted(entries)]


def active() -> list[RunDir]:
    """The runs that have a worker."""
    return [run for run in paths.all_runs() if status(run).is_active]


def unreleased_memory() -> list[str]:
    """What killed workers have not given back, in words."""
    lines = (read_object(folder() / "state.json") or {}).get("left")
    return [str(line) for line in lines] if isinstance(lines, list) else []


def reorder(run: RunDir, *, priority: int | None = None, first: bool = False) -> None:
    """Change a waiting run's priority, or put it in front of all others."""
    line = waiting_runs()
    if run not in line:
        raise LabError(f"{run.id} does not wait in the queue.", "Only waiting runs can be moved.")
    queue_entry = read_object(run.queue) or {}
    if first:
        front = read_object(line[0].queue) or {}
        queue_entry |= {
            "priority": _number(front.get("priority")),
            "order": _number(front.get("order")) - 1,
        }
    if priority is not None:
        queue_entry["priority"] = priority
    write_json(run.queue, queue_entry)


def claim(run: RunDir) -> bool:
    """Take a run out of the line to start it; False if it was withdrawn meanwhile.

    A rename has one winner: nobody can withdraw what is being started, or start what has been
    withdrawn. `recover` puts back what a killed supervisor had claimed and not started.
    """
    try:
        os.rename(run.queue, run.claim)
    except OSError:
        return False
    return True


def is_claimed(run: RunDir) -> bool:
    """Whether a supervisor took the run out of the line to start it, and has not started it."""
    return run.claim.exists() and not run.process.exists() and not run.result.exists()


def recover() -> None:
    """Called by a new supervisor, which holds the lock: nobody else can have a claim."""
    for run in filter(is_claimed, paths.all_runs()):
        os.rename(run.claim, run.queue)


def withdraw(run: RunDir) -> bool:
    """Take a waiting run out of the queue as cancelled; False if it does not wait."""
    try:
        os.rename(run.queue, run.path / "queue.withdrawn")
    except OSError:
        return False
    write_result(run, Result("cancelled", ended=time.time()))
    return True


def _number(value: Any) -> float:
    return float(finite_number(value) or 0.0)
