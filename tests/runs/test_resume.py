"""A run that was killed ends with the very weights of one that was not."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lab import process
from lab.atomic_files import read_object
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions, record_reader
from lab.runs.status import status
from tests.conftest import attempt_here


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    (file,) = run.artifact.glob("*.safetensors")
    return load_file(file)


def assert_same_outcome(first: RunDir, second: RunDir) -> None:
    """Bitwise equal weights, and one continuous history with the same losses."""
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    for kind, key in (("train", "train/loss"), ("eval", "eval/loss")):
        series = [
            {record["step"]: record[key] for record in record_reader.metrics(run, kind)}
            for run in (first, second)
        ]
        # a stop evaluates once more than the schedule has it
        assert series[0].items() <= series[1].items()
    steps = [record["step"] for record in record_reader.metrics(second, "train")]
    assert steps == list(range(1, len(steps) + 1)), "one continuous history"


def wait_for_step(run: RunDir, step: int, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        records = record_reader.metrics(run, "train")
        if records and records[-1]["step"] >= step:
            return
        assert not status(run).has_ended, status(run)
        time.sleep(0.02)
    raise AssertionError(f"{run.id} did not reach step {step}")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_kill_and_resume_is_bitwise_exact(
    start: Callable[..., RunDir], work_here: Callable[..., RunDir]
) -> None:
    """A real kill of a real worker; the methods and packing are those of the next test."""
    sections: dict[str, Any] = {"train": {"max_steps": 40}}
    whole = work_here("lora", **sections)
    run = start("lora", **sections)
    wait_for_step(run, 9)
    killed = time.monotonic()
    assert process.send(read_object(run.process), signal.SIGKILL)
    while status(run).state != "crashed":
        assert time.monotonic() - killed < 10, status(run)
        time.sleep(0.05)
    assert "Resume it" in status(run).hint
    actions.resume(run)
    assert actions.wait(run, timeout_s=120) == "done"
    resumed_at = record_reader.last_event(run, "plan")["resumed_at"]
    assert resumed_at >= 8, "it went on from a checkpoint, not from the start"
    assert_same_outcome(whole, run)
    assert (run.attempts / "1" / "process.json").is_file()


@pytest.mark.parametrize("packing", ["off", "on"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_interrupted_attempt_resumes_bitwise(
    work_here: Callable[..., RunDir],
    make_spec: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    packing: str,
) -> None:
    from lab.train.step_recorder import StepRecorder
    from tests.answers import checked

    sections = {"data": {"packing": packing}}
    whole = work_here(method, **sections)
    run = actions.create_run_dir(checked(make_spec(method, **sections)))
    add = StepRecorder.add

    def fail_at_seven(self: StepRecorder, *measured: Any) -> None:
        add(self, *measured)
        if self.loop.batches.used.step == 7:
            raise RuntimeError("as if the machine had failed")

    with monkeypatch.context() as patch:
        patch.setattr(StepRecorder, "add", fail_at_seven)
        assert attempt_here(run) == 1
    assert status(run).state == "failed" and "as if the machine" in status(run).message
    monkeypatch.setattr(actions, "submit", lambda run: None)
    actions.resume(run)
    assert attempt_here(run) == 0
    assert record_reader.last_event(run, "plan")["resumed_at"] == 4
    assert_same_outcome(whole, run)


def test_a_damaged_checkpoint_is_skipped_and_named(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained[1]
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-4", "step-8"]
    damage(run.checkpoints / "step-8" / "optimizer.safetensors")
    (run.checkpoints / ".tmp-step-12").mkdir()
    result = read_object(run.result)
    assert result is not None
    run.result.write_text(json.dumps(result | {"state": "stopped"}))
    before = weights(run)
    monkeypatch.setattr(actions, "submit", lambda run: None)
    actions.resume(run)
    assert attempt_here(run) == 0
    assert record_reader.last_event(run, "plan")["resumed_at"] == 4
    assert any(
        "optimizer.safetensors is damaged" in w["message"]
        for w in record_reader.events(run, "warning")
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(run).items())


def test_other_data_is_no_resume(
    make_spec: Callable[..., dict[str, Any]],
    chats: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.conftest import run_here

    file = tmp_path / "chats.jsonl"
    file.write_text(chats.read_text())
    run = run_here(make_spec("lora", data={"dataset": str(file)}, train={"max_steps": 6}))
    run.result.write_text(json.dumps({"state": "stopped"}))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-2]))
    monkeypatch.setattr(actions, "submit", lambda run: None)
    actions.resume(run)
    assert attempt_here(run) == 1
    assert "has changed since the last attempt (24 examples then, 22 now)" in status(run).message


def test_a_full_disk_under_the_telemetry_ends_no_run(
    work_here: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.train import telemetry

    def full(path: Path, text: str, durable: bool = True) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(telemetry, "write_atomic", full)
    run = work_here("lora", train={"max_steps": 3})
    assert status(run).state == "done" and not run.heartbeat.exists()


def test_stop_keeps_a_result_and_can_go_on(
    make_spec: Callable[..., dict[str, Any]],
    work_here: Callable[..., RunDir],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lab.train.step_recorder import StepRecorder
    from tests.answers import checked

    sections = {"train": {"max_steps": 20, "save_steps": 0, "eval_steps": 0}}
    run = actions.create_run_dir(checked(make_spec("lora", **sections)))
    monkeypatch.setattr(actions, "submit", lambda run: None)
    add = StepRecorder.add

    def stop_at_five(self: StepRecorder, *measured: Any) -> None:
        add(self, *measured)
        if self.loop.batches.used.step == 5:
            with pytest.raises(LabError, match="Only a run that has ended"):
                actions.resume(run)
            with pytest.raises(LabError, match="Stop it first"):
                actions.delete(run)
            actions.command(run, "stop")

    with monkeypatch.context() as patch:
        patch.setattr(StepRecorder, "add", stop_at_five)
        assert attempt_here(run) == 0
    assert status(run).state == "stopped" and run.artifact.is_dir()
    steps = record_reader.metrics(run, "train")[-1]["step"]
    assert 5 <= steps < 20
    assert [path.name for path in run.checkpoints.glob("step-*")] == [f"step-{steps}"]
    actions.resume(run)
    assert attempt_here(run) == 0
    assert_same_outcome(work_here("lora", **sections), run)
    actions.delete(run)
    assert not run.path.exists()


def test_the_same_spec_gives_the_same_losses_twice(
    trained: list[RunDir], work_here: Callable[..., RunDir]
) -> None:
    first = trained[1]
    assert_same_outcome(first, work_here("lora"))
    other = work_here("lora", train={"seed": 1})
    assert record_reader.metrics(other, "train")[-1]["train/loss"] != pytest.approx(
        record_reader.metrics(first, "train")[-1]["train/loss"], abs=1e-9
    )
