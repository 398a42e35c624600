"""result.json as it is written and read: nothing is lost; a damaged value costs itself alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.atomic_files import read_object, write_json
from lab.paths import RunDir
from lab.runs.result import (
    ForcedEnd,
    OutOfMemory,
    Result,
    TrainingSummary,
    read_result,
    write_result,
)

SUMMARY = TrainingSummary(
    step=7, tokens=3500, loss_tokens=1200, seconds=12.5, flops=3e12, parameters=1000, trainable=10,
    planned_steps=8, packing="on", peak_bytes=5_000, peaks={"load": 4_000, "forward": 5_000},
    artifact_bytes=80, probe={"probe/loss": 2.5, "probe/kl": 0.1},
)  # fmt: skip
MEMORY = OutOfMemory("training", 6_000, {"weights": 4_000, "loss": 2_000})


@pytest.fixture
def run(lab_home: Path) -> RunDir:
    run = RunDir(lab_home / "runs" / "20261122-101530-lora-k3f9")
    run.path.mkdir(parents=True)
    return run


def test_a_result_is_read_as_it_was_written(run: RunDir) -> None:
    assert read_result(run) is None, "The attempt has not ended."
    killed = ForcedEnd(pid=7, signal="SIGKILL", why="It did not stop.", time=39.5)
    for result in (
        Result("failed", "No.", "Do.", 2, 10.0, 40.0, SUMMARY, MEMORY, killed),
        Result("cancelled", ended=40.0),
    ):
        write_result(run, result)
        assert read_result(run) == result
    assert (read_object(run.result) or {}).keys() == {
        "v", "state", "message", "hint", "ended", "summary",
    }, "What is not known is left out."  # fmt: skip


def test_figures_of_forgetting_lie_beside_the_others(run: RunDir) -> None:
    write_result(run, Result("done", summary=SUMMARY))
    summary = (read_object(run.result) or {})["summary"]
    assert summary["probe/loss"] == 2.5 and summary["step"] == 7 and "probe" not in summary


def test_seconds_need_both_ends() -> None:
    assert Result("done", started=10.0, ended=40.0).seconds == 30.0
    assert Result("done", started=40.0, ended=10.0).seconds == 0.0, "A clock that was set back."
    assert Result("done", ended=40.0).seconds is None


@pytest.mark.parametrize("damage", ["x", [1], {"a": 1}, True, 1e400, None])
def test_a_damaged_value_is_as_one_that_is_missing(run: RunDir, damage: Any) -> None:
    stored = Result("done", "Well.", "", 1, 10.0, 40.0, SUMMARY).to_json()
    write_json(run.result, stored | {"started": damage, "later": damage})
    result = read_result(run)
    assert result is not None and (result.started, result.seconds) == (None, None)
    assert (result.state, result.summary) == ("done", SUMMARY)
    write_json(run.result, stored | {"summary": stored["summary"] | {"step": damage}})
    result = read_result(run)
    assert result is not None and result.summary.step is None and result.summary.tokens == 3500
    write_json(run.result, stored | {"summary": damage, "out_of_memory": damage})
    result = read_result(run)
    assert result is not None and result.summary == TrainingSummary()
