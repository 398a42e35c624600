"""A person says stop or cancel while something long goes on: what is given up, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lab.atomic_files import read_object
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.status import status
from lab.train import callbacks, sample_outputs
from lab.train.telemetry import Telemetry

Work = Callable[..., RunDir]
QUIET = {"max_steps": 5, "eval_steps": 0, "save_steps": 0}


def steps(run: RunDir, kind: str) -> list[int]:
    return [record["step"] for record in record_reader.metrics(run, kind)]


def request(telemetry: Telemetry, command: str) -> None:
    """A command, and the look of the sampler thread that comes once a second."""
    (telemetry.run.commands / command).touch()
    telemetry.each_second()


@pytest.mark.parametrize(
    ("command", "state", "trained"), [("cancel", "cancelled", [1]), ("stop", "stopped", [1, 2])]
)
def test_a_cancel_interrupts_a_step_and_a_stop_waits_for_its_end(
    small_run: Work,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    state: str,
    trained: list[int],
) -> None:
    end_phase = callbacks.RunCallback.end_phase

    def in_the_second_step(self: callbacks.RunCallback, phase: str) -> None:
        if phase == "forward" and self.used.step == 1:
            request(self.telemetry, command)
        end_phase(self, phase)

    monkeypatch.setattr(callbacks.RunCallback, "end_phase", in_the_second_step)
    run = small_run("lora", train=QUIET)
    assert status(run).state == state and steps(run, "train") == trained
    assert run.artifact.is_dir() == (state == "stopped")
    summary = (read_object(run.result) or {})["summary"]
    assert (summary["step"], summary["planned_steps"]) == (trained[-1], 5), "how far, and of what"
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-2"] * (
        state == "stopped"
    )


def test_nothing_interrupts_the_saving_of_a_result(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = Telemetry.enter_phase

    def cancel_while_saving(self: Telemetry, phase: str) -> None:
        enter(self, phase)
        if phase == "saving":
            request(self, "cancel")

    monkeypatch.setattr(Telemetry, "enter_phase", cancel_while_saving)
    run = small_run("lora", train=QUIET)
    assert status(run).state == "done" and (run.artifact / "receipt.json").is_file()


def test_stop_in_a_sample_ends_it_and_makes_no_further_step(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_stopped, tokens = sample_outputs.SampleGenerator._is_stopped, []

    def stop_at_the_second(
        self: sample_outputs.SampleGenerator, ids: Any, scores: Any, **more: Any
    ) -> Any:
        if steps(self.telemetry.run, "train"):  # not the sample before the first step
            tokens.append(1)
            if len(tokens) == 2:
                (self.telemetry.run.commands / "stop").touch()
        return is_stopped(self, ids, scores, **more)

    monkeypatch.setattr(sample_outputs.SampleGenerator, "_is_stopped", stop_at_the_second)
    run = small_run("lora", train=QUIET | {"sample_steps": 2})
    assert len(tokens) == 2, "the sample ended at the token at which stop was said"
    assert status(run).state == "stopped" and steps(run, "train") == [1, 2]
    assert [event["step"] for event in record_reader.events(run, "sample")] == [0], "no half sample"
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-2"]


def test_an_evaluation_that_holds_up_a_stop_is_left_out(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "STOP_S", 0.0)
    progress = callbacks.RunCallback._after_batch

    def stop_first(self: callbacks.RunCallback, rows: int) -> None:
        (self.run.commands / "stop").touch()
        progress(self, rows)

    monkeypatch.setattr(callbacks.RunCallback, "_after_batch", stop_first)
    run = small_run("lora", train=QUIET | {"eval_steps": 3, "batch_size": 1})
    assert status(run).state == "stopped" and steps(run, "eval") == [0]
    assert steps(run, "train") == [1, 2, 3], "and no further step was made"
    warnings = [event["message"] for event in record_reader.events(run, "warning")]
    assert any("evaluation at step 3 was left out" in message for message in warnings)
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-3"]
    assert run.artifact.is_dir()
