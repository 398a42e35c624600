"""A checkpoint is measured on the held-out rows of its run, as the run itself measured it."""

from __future__ import annotations

import shutil

import pytest

from lab import background_job
from lab.errors import LabError
from lab.evals import checkpoint_loss
from lab.paths import RunDir
from lab.runs import checkpoints, record_reader


def test_the_loss_is_that_of_the_run_at_this_step(trained: list[RunDir]) -> None:
    lora = trained[1]
    shutil.rmtree(lora.artifact)  # as while it trains
    lora.exports.mkdir()
    step = checkpoints.step_of(checkpoints.listing(lora.checkpoints)[0])
    assert checkpoint_loss.record(lora, step) is None
    assert checkpoint_loss.make(lora, step) == 0
    job = checkpoint_loss.record(lora, step)
    assert job is not None and job.finish == "done"
    by_step = {row["step"]: row["eval/loss"] for row in record_reader.metrics(lora, "eval")}
    assert job.result["loss"] == pytest.approx(by_step[step], rel=1e-4)
    assert job.result["rows"] == 5 and job.result["model"] == f"run:{lora.id}@{step}"


def test_only_what_is_there_is_measured(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(background_job, "start", lambda file, arguments: started.append(arguments))
    with pytest.raises(LabError, match="no checkpoint of step 3"):
        checkpoint_loss.start(trained[1], 3)
    step = checkpoints.step_of(checkpoints.listing(trained[1].checkpoints)[0])
    checkpoint_loss.start(trained[1], step)
    assert started == [["lab.evals", trained[1].id, str(step)]]
