"""Checkpoints: which are kept, what a full disk does, when a run ends early."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import process
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions, checkpoints, record_reader
from lab.runs.status import status
from lab.train import callbacks, checkpoint


def steps(run: RunDir) -> list[int]:
    return [row.step for row in checkpoints.table(run)]


def test_the_best_the_last_and_the_pinned_are_kept(
    work_here: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = {"steps": [3]}
    prune = checkpoint.delete_old

    def pin_then_prune(folder: Path, *rest: Any) -> list[str]:
        checkpoints.write_json(folder.parent / "pins.json", pins)
        return prune(folder, *rest[:2], checkpoints.pinned(RunDir(folder.parent)))

    monkeypatch.setattr(checkpoint, "delete_old", pin_then_prune)
    run = work_here(
        "lora", train={"save_steps": 1, "eval_steps": 5, "keep_best": 1, "keep_last": 2}
    )
    assert steps(run) == [3, 10, 11], "10 was also evaluated, and is the best"
    rows = checkpoints.table(run)
    assert [row.pinned for row in rows] == [True, False, False]
    assert all(row.bytes > 0 for row in rows)
    with pytest.raises(LabError, match="is pinned"):
        checkpoints.delete(run, 3)
    checkpoints.pin(run, 3, keep=False)
    checkpoints.delete(run, 3)
    assert steps(run) == [10, 11]
    with pytest.raises(LabError, match="Available: 10, 11"):
        checkpoints.pin(run, 99)


def test_a_checkpoint_is_not_deleted_under_a_run(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither under a worker, nor while a resumed run waits to begin with it."""
    run = trained[1]
    process.register(run, os.getpid())
    result = run.result.read_text()
    run.result.unlink()
    with pytest.raises(LabError, match="Stop it first"):
        checkpoints.delete(run, 8)
    run.result.write_text(result.replace('"done"', '"stopped"'))
    monkeypatch.setattr(actions, "submit", lambda run: None)
    actions.resume(run)
    assert status(run).state == "queued"
    with pytest.raises(LabError, match="Stop it first"):
        checkpoints.delete(run, 8)
    assert steps(run) == [4, 8]


def test_a_full_disk_stops_no_run_and_breaks_no_checkpoint(
    work_here: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = callbacks.shutil.disk_usage
    requests: list[int] = []

    def nearly_full_at_eight(path: Path) -> Any:
        disk = usage(path)
        if Path(path).parent.name != "runs":
            return disk
        requests.append(1)  # a look before each checkpoint
        return disk._replace(free=callbacks.ROOM_BYTES) if len(requests) == 2 else disk

    monkeypatch.setattr(callbacks.shutil, "disk_usage", nearly_full_at_eight)
    run = work_here("lora", train={"max_steps": 14})
    assert status(run).state == "done"
    (warning,) = record_reader.events(run, "warning")
    assert "step 8 was not saved" in warning["message"] and "are missing" in warning["message"]
    assert steps(run) == [4, 12], "and it went on when there was room again"


def test_a_write_that_fails_half_way_leaves_the_last_checkpoint_whole(
    work_here: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file, written = checkpoint.save_file, []

    def full_at_the_second(tensors: Any, path: Path) -> None:
        written.append(path)
        if len(written) == 5:  # the optimizer's file of the second checkpoint
            path.write_bytes(b"half")
            raise OSError(28, os.strerror(28))
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full_at_the_second)
    run = work_here("lora", train={"max_steps": 10})
    assert status(run).state == "done" and steps(run) == [4]
    assert "No space left" in record_reader.events(run, "warning")[0]["message"]
    assert not list(run.checkpoints.glob(".tmp-*"))
    saved, skipped = checkpoint.latest_valid(run.checkpoints)
    assert saved is not None and saved.step == 4 and skipped == []


@pytest.mark.parametrize("name", ["trainable", "optimizer", "extra"])
@pytest.mark.parametrize("how", ["missing", "short", "changed"])
def test_no_damaged_checkpoint_is_ever_taken(trained: list[RunDir], name: str, how: str) -> None:
    run = trained[1]
    file = run.checkpoints / "step-8" / f"{name}.safetensors"
    if how == "missing":
        file.unlink()
    elif how == "short":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    saved, skipped = checkpoint.latest_valid(run.checkpoints)
    assert saved is not None and saved.step == 4
    assert len(skipped) == 1 and f"{name}.safetensors" in skipped[0]


def test_one_checkpoint_is_let_go_and_the_other_stays_pinned(lab_home: Path) -> None:
    run = RunDir(lab_home / "runs" / "20260101-000000-lora-abcd")
    for step in (3, 5):
        (run.checkpoints / f"step-{step}").mkdir(parents=True)
        checkpoints.pin(run, step)
    checkpoints.pin(run, 3, keep=False)
    assert checkpoints.pinned(run) == {5}
