"""The loss of one checkpoint on the held-out rows of its run, measured in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab import background_job
from lab.background_job import JobRecord
from lab.chat import models as chat_models
from lab.errors import LabError
from lab.evals.held_out import evaluate
from lab.paths import RunDir


def job_file(run: RunDir, step: int) -> Path:
    return run.exports / f"measured-{int(step)}.json"


def record(run: RunDir, step: int) -> JobRecord | None:
    return background_job.read(job_file(run, step))


def start(run: RunDir, step: int) -> None:
    """Begin to measure. Raises LabError where there is no such checkpoint, or no held-out rows."""
    _named(run, step)
    background_job.start(job_file(run, step), ["lab.evals", run.id, str(int(step))])


def make(run: RunDir, step: int) -> int:
    """Measure in this process and keep the record; the exit code."""

    def work(request: Mapping[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
        tell("loading and reading the held-out rows")
        (row,) = evaluate([_named(run, step)])
        return row

    return background_job.work(job_file(run, step), work)


def _named(run: RunDir, step: int) -> chat_models.ModelRef:
    named = chat_models.parse(f"run:{run.id}@{step}")
    if named.step is None:
        raise LabError(f"'{step}' is no step.")
    return named
