"""The newest whole checkpoint is where an attempt goes on; what was passed over is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.atomic_files import write_json
from lab.errors import LabError
from lab.paths import RunDir
from lab.spec import RunSpec
from lab.train import checkpoint
from lab.train.resume_point import newest_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "20260101-000000-x-abcd")
    run.path.mkdir()
    write_json(run.spec, RunSpec().to_json())
    return run


class Warnings(list[str]):
    def warn(self, message: str) -> None:
        self.append(message)


@pytest.fixture
def look(run: RunDir) -> Callable[[], tuple[int | None, list[str]]]:
    """(step of the checkpoint that is taken, what is told) of a run with steps 2 and 10."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (2, 10):
        checkpoint.save(run.checkpoints, step, model, optimizer, {"used": {}}, {})

    def newest() -> tuple[int | None, list[str]]:
        telemetry: Any = Warnings()
        saved = newest_checkpoint(run, telemetry)
        return None if saved is None else saved.step, list(telemetry)

    return newest


def test_a_run_that_begins_has_none(run: RunDir) -> None:
    telemetry: Any = Warnings()
    assert newest_checkpoint(run, telemetry) is None and telemetry == []


def test_a_damaged_one_is_passed_over_and_without_a_whole_one_there_is_no_resume(
    run: RunDir, look: Callable[[], tuple[int | None, list[str]]]
) -> None:
    assert look() == (10, [])
    folder = run.checkpoints
    (folder / "step-10" / "optimizer.safetensors").unlink()
    assert look() == (2, ["Skipped a checkpoint: step-10 lacks optimizer.safetensors."])
    (folder / "step-2" / "state.json").write_text("{}")
    with pytest.raises(LabError, match=r"None of 2 checkpoints is complete.*step-10.*step-2"):
        look()
    write_json(run.resume, {"v": 1, "settings": {}, "incomplete": True})
    step, messages = look()
    assert step == 10 and len(messages) == 3
    assert messages[2].startswith("step-10 is missing optimizer.safetensors; that state is reset")
