"""What is written between steps: read a step later, not written at all, or too long to be whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lab.data.batches import TokenSequence
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.status import status
from lab.train import callbacks, step_recorder

Work = Callable[..., RunDir]


def test_records_that_are_read_a_step_later_are_all_written_in_their_order(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a step's numbers are there when the next step has begun. The clock stops
    when what it counts is through."""
    add, done = step_recorder.StepRecorder.add, list[str]()
    stop = callbacks.TrainingTimer.stop

    def stop_clock(self: callbacks.TrainingTimer) -> float:
        done.append("clock")
        return stop(self)

    monkeypatch.setattr(callbacks.TrainingTimer, "stop", stop_clock)

    class Event:
        """Of CUDA: recorded behind what was launched, and waited for."""

        def record(self) -> None:
            self.number = done.count("recorded") + 1
            done.append("recorded")

        def synchronize(self) -> None:
            done.append(f"waited for {self.number}")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("all"))

    class OfACard:
        on_gpu = True

        def __init__(self, memory: Any) -> None:
            self.memory = memory

        def __getattr__(self, name: str) -> Any:
            return getattr(self.memory, name)

    begin = callbacks.RunCallback.on_train_begin

    def begin_on_a_card(self: callbacks.RunCallback, loop: Any) -> None:
        self.memory = OfACard(self.memory)  # type: ignore[assignment]
        begin(self, loop)

    def read_later(self: step_recorder.StepRecorder, *step: Any) -> None:
        add(self, *step)
        written = len(record_reader.metrics(self.telemetry.run, "train"))
        assert written == self.loop.batches.used.step - 1, "the host does not wait for the newest"

    monkeypatch.setattr(callbacks.RunCallback, "on_train_begin", begin_on_a_card)
    monkeypatch.setattr(step_recorder.StepRecorder, "add", read_later)
    never = {"eval_steps": 0, "save_steps": 0, "sample_steps": 0}
    run = small_run("lora", data={"eval_fraction": 0.0}, train={"max_steps": 3, **never})
    assert status(run).state == "done", status(run)
    assert done == [
        *("clock", "recorded"),
        *("waited for 1", "clock", "waited for 1", "recorded"),
        *("all", "clock", "waited for 2", "recorded"),  # the end comes next, and no step
        "waited for 3",
    ], "a step's numbers are copied once it is through, and read when they are there"
    records = record_reader.metrics(run, "train")
    assert [each["step"] for each in records] == [1, 2, 3], "the last one, too"
    passed = [0, *(each["tokens"] for each in records)]
    for before, each in zip(passed, records, strict=False):
        rate = (each["tokens"] - before) / each["perf/step_s"]
        assert each["perf/tokens_per_s"] == pytest.approx(rate), f"step {each['step']}"


def test_a_checkpoint_that_cannot_be_written_ends_no_run(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = callbacks.checkpoint.save, []

    def fail_first(*arguments: Any) -> Path:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return save(*arguments)

    monkeypatch.setattr(callbacks.checkpoint, "save", fail_first)
    run = small_run("lora", train={"max_steps": 5, "eval_steps": 0, "save_steps": 2})
    assert status(run).state == "done", status(run)
    assert [event["step"] for event in record_reader.events(run, "checkpoint")] == [4]
    (warning,) = [event["message"] for event in record_reader.events(run, "warning")]
    assert "The checkpoint of step 2 was not saved: [Errno 28] No space left" in warning


def test_many_rows_of_a_broken_step_are_named_in_part() -> None:
    rows = [TokenSequence([1], [1], (1,), (number,)) for number in range(20, 6, -1)]
    batches = SimpleNamespace(sequences=lambda step: [rows[:7], rows[7:]] if step == 3 else [])
    recorder: Any = SimpleNamespace(loop=SimpleNamespace(batches=batches))
    words = step_recorder.StepRecorder._rows_of(recorder, 3)
    assert words == f"rows {', '.join(map(str, range(7, 19)))} and others", "the first twelve"


def test_who_said_stop_long_ago_does_not_wait_for_the_forgetting_probe(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation of step 4 has just ended when the minute is over."""
    evaluate, begin = callbacks.RunCallback.evaluate, callbacks.RunCallback.on_train_begin
    evaluated, measured = list[int](), list[int]()

    def evaluate_then(self: callbacks.RunCallback) -> float | None:
        loss = evaluate(self)
        evaluated.append(self.used.step)
        return loss

    def begin_with_probe(self: callbacks.RunCallback, loop: Any) -> None:
        self.forgetting = SimpleNamespace()  # type: ignore[assignment]
        begin(self, loop)

    def measure(self: callbacks.RunCallback, probe: Any) -> None:
        measured.append(self.used.step)

    waits = lambda self: callbacks.STOP_S + 1 if 4 in evaluated else callbacks.STOP_S  # noqa: E731
    monkeypatch.setattr(callbacks.RunCallback, "evaluate", evaluate_then)
    monkeypatch.setattr(callbacks.RunCallback, "on_train_begin", begin_with_probe)
    monkeypatch.setattr(callbacks.RunCallback, "_measure_forgetting", measure)
    monkeypatch.setattr(callbacks.Commands, "stop_waits", waits)
    small_run("lora", train={"max_steps": 4, "eval_steps": 2, "save_steps": 0})
    assert (evaluated, measured) == ([2, 4], [2])
