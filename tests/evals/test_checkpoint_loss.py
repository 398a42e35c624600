"""The loss of one checkpoint, measured beside the pages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lab import process
from lab.atomic_files import write_json
from lab.chat import models
from lab.errors import LabError
from lab.evals import checkpoint_loss
from lab.evals.held_out import evaluate
from lab.paths import RunDir


def test_a_checkpoint_is_measured_as_evaluate_does(trained: list[RunDir]) -> None:
    run = trained[1]
    assert checkpoint_loss.measured(run, 8).state == ""
    assert checkpoint_loss.main(run.id, "8") == 0
    record = checkpoint_loss.measured(run, 8)
    (row,) = evaluate([models.parse(f"run:{run.id}@8")])
    assert record.state == "done" and record.loss == pytest.approx(row.loss)
    assert (record.rows, record.tokens) == (row.rows, row.tokens) and record.rows == 5
    os.utime(run.checkpoints / "step-8" / "manifest.json", (1, 1))
    assert checkpoint_loss.measured(run, 8).state == "", "other weights under its name"


def test_what_goes_wrong_is_written_down(trained: list[RunDir]) -> None:
    run = trained[1]
    with pytest.raises(LabError, match="no checkpoint of step 5"):
        checkpoint_loss.start(run, 5)
    assert checkpoint_loss.main(run.id, "5") == 1
    record = checkpoint_loss.measured(run, 5)
    assert record.state == "failed" and "no checkpoint of step 5" in record.message


def test_it_is_started_once_and_an_interruption_is_told(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, spawned = trained[1], []

    class Child:
        pid = os.getpid()

    def spawn(arguments: list[str], log: Path) -> Any:
        spawned.append(arguments)
        return Child()

    monkeypatch.setattr(process, "spawn", spawn)
    checkpoint_loss.start(run, 4)
    checkpoint_loss.start(run, 4)
    assert spawned == [["lab.evals.checkpoint_loss", run.id, "4"]]
    assert checkpoint_loss.measured(run, 4).state == "measuring"
    file = checkpoint_loss._file(run, 4)
    dead = {"pid": 999_999, "start": 1, "host": "elsewhere", "boot": "x"}
    written = checkpoint_loss._written(run, 4)
    write_json(file, {"state": "measuring", "written": written, "process": dead})
    record = checkpoint_loss.measured(run, 4)
    assert record.state == "failed" and "interrupted" in record.message
