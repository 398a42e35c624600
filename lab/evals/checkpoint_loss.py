"""The loss of one checkpoint on the run's held-out rows, measured by a process of its own.

`python -m lab.evals.checkpoint_loss RUN STEP`; what it finds lies in `LAB_HOME/cache/measured`,
where pages look for it.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import paths, process
from lab.atomic_files import read_object, write_json
from lab.dataclass_json import read
from lab.errors import LabError, refusal_of
from lab.paths import RunDir

MODULE = "lab.evals.checkpoint_loss"


@dataclass(frozen=True)
class CheckpointLoss:
    """`state`: "" (never measured), measuring, done or failed. `loss` in nats per token."""

    state: str = ""
    since: float = 0.0  # seconds since the epoch
    loss: float | None = None
    rows: int = 0
    tokens: int = 0
    written: str = ""  # of which weights: a run that was resumed writes its checkpoints anew
    message: str = ""


def measured(run: RunDir, step: int) -> CheckpointLoss:
    """What is known of a checkpoint; of other weights under its name nothing is."""
    stored = read_object(_file(run, step)) or {}
    record = read(CheckpointLoss, stored) or CheckpointLoss()
    if record.written != _written(run, step):
        return CheckpointLoss()
    if record.state == "measuring" and not process.is_alive(stored.get("process")):
        return CheckpointLoss("failed", message="The measurement was interrupted. Start it again.")
    return record


def start(run: RunDir, step: int) -> None:
    """Measure it in the background, unless that is being done. Raises LabError for a checkpoint
    that is not there."""
    if measured(run, step).state == "measuring":
        return
    if not (run.checkpoints / f"step-{step}").is_dir():
        raise LabError(f"{run.id} has no checkpoint of step {step}.", "It was deleted meanwhile.")
    file = _file(run, step)
    paths.make_folder(file.parent)
    child = process.spawn([MODULE, run.id, str(step)], file.with_suffix(".log"))
    _note(run, step, CheckpointLoss("measuring", time.time()), child.pid)


def measure(run: RunDir, step: int) -> CheckpointLoss:
    """Measure it here, and write down what comes of it."""
    from lab.chat import models
    from lab.evals.held_out import evaluate

    began = time.time()
    try:
        (row,) = evaluate([models.parse(f"run:{run.id}@{step}")])
        result = CheckpointLoss("done", began, row.loss, row.rows, row.tokens)
    except (LabError, OSError) as error:
        refusal = refusal_of(error)
        result = CheckpointLoss(
            "failed", began, message=f"{refusal.message} {refusal.hint}".strip()
        )
    _note(run, step, result, os.getpid())
    return result


def _note(run: RunDir, step: int, record: CheckpointLoss, pid: int) -> None:
    paths.make_folder(_file(run, step).parent)
    values: dict[str, Any] = asdict(record) | {"written": _written(run, step)}
    write_json(_file(run, step), {**values, "process": process.identity(pid)}, durable=False)


def _file(run: RunDir, step: int) -> Path:
    return paths.home() / "cache" / "measured" / run.id / f"step-{int(step)}.json"


def _written(run: RunDir, step: int) -> str:
    """When the checkpoint's manifest was written; "" without one."""
    try:
        manifest = run.checkpoints / f"step-{int(step)}" / "manifest.json"
        return str(manifest.stat().st_mtime_ns)
    except OSError:
        return ""


def main(run_id: str, step: str) -> int:
    return 0 if measure(paths.run_dir(run_id), int(step)).state == "done" else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:3]))
