"""What happens between steps: when it is due, what is recorded, what a person's commands do."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lab import host
from lab.atomic_files import read_object, write_json
from lab.paths import RunDir
from lab.runs import checkpoints, record_reader
from lab.runs.status import status
from lab.train import callbacks
from lab.train.step import RowLosses
from lab.train.telemetry import Telemetry
from tests.conftest import attempt_again

Work = Callable[..., RunDir]
QUIET = {"eval_steps": 0, "save_steps": 0}


def steps(run: RunDir, kind: str) -> list[int]:
    """The steps of the records (eval) or events (checkpoint, sample) of a kind."""
    records = (
        record_reader.metrics(run, kind) if kind == "eval" else record_reader.events(run, kind)
    )
    return [record["step"] for record in records if record.get("of") != "base"]


def warnings(run: RunDir) -> str:
    return "\n".join(event["message"] for event in record_reader.events(run, "warning"))


def again(run: RunDir) -> None:
    """A second attempt, whose records supersede those of the first."""
    (run.attempts / "1").mkdir(parents=True)
    assert attempt_again(run) == 0


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Let evaluations of a run give these losses, in this order."""

    def give(losses: list[float]) -> None:
        following: Iterator[float] = iter(losses)
        monkeypatch.setattr(
            callbacks, "row_losses", lambda *args, **kwargs: RowLosses([10 * next(following)], [10])
        )

    return give


def at_step(monkeypatch: pytest.MonkeyPatch, wanted: int, do: Callable[[RunDir], None]) -> None:
    """Do something while the worker writes down its step `wanted`."""
    write = Telemetry.metric

    def metric(self: Telemetry, kind: str, **values: Any) -> None:
        write(self, kind, **values)
        if kind == "train" and values["step"] == wanted:
            do(self.run)

    monkeypatch.setattr(Telemetry, "metric", metric)


def command(name: str) -> Callable[[RunDir], None]:
    def give(run: RunDir) -> None:
        run.commands.mkdir(exist_ok=True)
        (run.commands / name).touch()

    return give


# -- when it is due ---------------------------------------------------------------------


def test_left_open_a_run_evaluates_ten_times_saves_five_and_samples_thrice(
    small_run: Work,
) -> None:
    due = {"eval_steps": None, "save_steps": None, "sample_steps": None}
    run = small_run("lora", train={"max_steps": 20, "keep_last": 9, **due})
    assert steps(run, "eval") == list(range(2, 21, 2))
    assert steps(run, "checkpoint") == [4, 8, 12, 16], "the end has a result of its own"
    assert steps(run, "sample") == [0, 10, 20]
    again(run)
    assert steps(run, "eval") == list(range(2, 21, 2)), "the same after a resume, and no more"


def test_counted_in_steps_and_switched_off(small_run: Work) -> None:
    every = {"eval_steps": 3, "save_steps": 2, "sample_steps": 5}
    run = small_run("lora", train={"max_steps": 7, "keep_last": 9, **every})
    assert steps(run, "eval") == [3, 6, 7] and steps(run, "checkpoint") == [2, 4, 6]
    assert steps(run, "sample") == [0, 5, 7]
    quiet = small_run("lora", train={"max_steps": 7, **QUIET})
    assert steps(quiet, "eval") == [7], "the end is always measured"
    assert steps(quiet, "checkpoint") == steps(quiet, "sample") == []


# -- early stopping and divergence ------------------------------------------------------


def test_early_stopping_goes_on_counting_after_a_resume(
    small_run: Work, evaluations: Callable[[list[float]], None]
) -> None:
    """Best at step 2, no better at 4 and 6: after the checkpoint of step 6, one more ends it."""
    train = {"max_steps": 20, "eval_steps": 2, "save_steps": 2, "early_stopping": 3}
    evaluations([2.0, 2.5, 2.4, 2.3])
    run = small_run("lora", train=train)
    assert steps(run, "eval") == [2, 4, 6, 8]
    assert checkpoints.table(run)[-1].step == 6
    evaluations([2.2, 1.0])
    again(run)
    assert record_reader.last_event(run, "plan")["resumed_at"] == 6
    assert steps(run, "eval") == [2, 4, 6, 8], "the third evaluation without a gain ends it"
    assert "not improved on 2.0000 for 3 evaluations" in warnings(run)


def test_a_gain_begins_the_count_anew_and_equal_is_no_gain(
    small_run: Work, evaluations: Callable[[list[float]], None]
) -> None:
    train = {"max_steps": 20, "eval_steps": 1, "early_stopping": 2, "save_steps": 0}
    evaluations([3.0, 3.1, 2.0, 2.0, 2.0, 1.0])
    run = small_run("lora", train=train)
    assert steps(run, "eval")[-1] == 5 and status(run).state == "done"


def test_divergence_is_said_once_and_only_where_it_is_large(
    small_run: Work, evaluations: Callable[[list[float]], None]
) -> None:
    train = {"max_steps": 5, "eval_steps": 1, "save_steps": 0}
    evaluations([2.0, 2.5, 2.7, 9.0, 9.0])
    run = small_run("lora", train=train)
    events = [
        event for event in record_reader.events(run, "warning") if "diverging" in event["message"]
    ]
    assert len(events) == 1
    assert "2.700 at step 3, after 2.000 at its best" in events[0]["message"]
    evaluations([2.0, 2.5, 1.9, 2.4, 2.4])
    assert "diverging" not in warnings(small_run("lora", train=train))


# -- what a step's record holds ---------------------------------------------------------


def test_rates_are_of_the_step_itself(small_run: Work, lab_home: Any) -> None:
    """Tokens and operations of one step over the seconds of one step, after a resume as well."""
    lab_home.mkdir(exist_ok=True)
    # so often that the processor is not timed again
    processor = {"cpu_peak_flops": 5e9, "cores": os.cpu_count(), "occasions": host.OCCASIONS}
    write_json(lab_home / "machine.json", {"v": 1, **processor})
    run = small_run("lora", train={"max_steps": 8, "save_steps": 3, "eval_steps": 0})
    for attempt in (1, 2):
        if attempt == 2:
            again(run)
            assert record_reader.last_event(run, "plan")["resumed_at"] == 6
        before = {"tokens": 0, "flops": 0.0, "seconds": 0.0}
        for record in record_reader.metrics(run, "train"):
            passed = record["perf/step_s"]
            gained = {key: record[key] - before[key] for key in before}
            place = f"step {record['step']} of attempt {attempt}"
            assert record["perf/tokens_per_s"] * passed == pytest.approx(gained["tokens"]), place
            assert record["perf/mfu"] * 5e9 * passed == pytest.approx(gained["flops"]), place
            assert gained["seconds"] == pytest.approx(passed, abs=1e-6), place
            before = {key: record[key] for key in before}


def test_evaluations_take_no_training_time(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget of seconds and the tokens a second are those of training alone. Each look at the
    clock finds it a second later, and an evaluation takes a hundred."""
    now = [0.0]

    def tick() -> float:
        now[0] += 1.0
        return now[0]

    def slow(*args: Any, **kwargs: Any) -> RowLosses:
        now[0] += 100.0
        time.sleep(0.3)  # for the sampler, in a thread of its own
        return RowLosses([20.0], [10])

    monkeypatch.setattr(callbacks.budget, "time", SimpleNamespace(perf_counter=tick))
    monkeypatch.setattr("lab.train.telemetry.SAMPLE_S", 0.05)
    monkeypatch.setattr(callbacks, "row_losses", slow)
    train = {"max_steps": 3, "eval_steps": 1, "save_steps": 0}
    run = small_run("lora", train=train)
    records = record_reader.metrics(run, "train")
    assert [record["perf/step_s"] for record in records] == [1.0, 1.0, 1.0]
    assert records[-1]["seconds"] == 3.0
    # what the sampler notes in the meantime stands on the same clock
    sampled = [record["seconds"] for record in record_reader.metrics(run, "device")]
    assert sampled[-1] > 0.0
    assert set(sampled) <= {0.0, *(record["seconds"] for record in records)}


def test_the_time_left_falls_to_nothing(small_run: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test's own, on which every step takes ten seconds, and the sixth forty."""
    now = [1000.0]
    messages: list[tuple[float, float, float, float | None]] = []
    report = Telemetry.progress

    class Clock:
        def monotonic(self) -> float:
            return now[0]

        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

    def progress(
        self: Telemetry, done: float, total: float, unit: str, eta_s: float | None = None
    ) -> None:
        report(self, done, total, unit, eta_s)
        if self.phase == "training":
            messages.append((now[0], done, total, eta_s))
            now[0] += 40.0 if done == 6 else 10.0

    monkeypatch.setattr(callbacks, "time", Clock())
    monkeypatch.setattr(Telemetry, "progress", progress)
    run = small_run("lora", train={"max_steps": 10, **QUIET, "save_steps": 4})
    for first_step in (0, 8):
        begun = messages[0][0]
        assert messages[0][1] == first_step and messages[0][3] is None, (
            "nothing is known at the start"
        )
        later = [event for event in messages if event[1] > first_step]
        assert {total for _, _, total, _ in messages} == {10}
        for at, done, _, left in later:
            expected = (at - begun) / (done - first_step) * (10 - done)
            assert left == pytest.approx(expected, abs=0.01), f"after step {done}"
        assert later[-1][1] == 10 and later[-1][3] == 0.0, "at the end nothing is left"
        messages.clear()
        if first_step == 0:
            again(run)


def test_a_budget_of_seconds_reports_seconds(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[tuple[float, float, str]] = []
    report = Telemetry.progress

    def progress(self: Telemetry, done: float, total: float, unit: str, *rest: Any) -> None:
        report(self, done, total, unit, *rest)
        if self.phase == "training":
            messages.append((done, total, unit))

    monkeypatch.setattr(Telemetry, "progress", progress)
    train = {
        "max_seconds": 0.4,
        "warmup_ratio": 0.0,
        "lr_scheduler_type": "linear",
        "learning_rate": 1e-3,
    }
    run = small_run("lora", train={"max_steps": None, **QUIET, **train})
    assert {(total, unit) for _, total, unit in messages} == {(0.4, "second")}
    records = record_reader.metrics(run, "train")
    assert messages[-1][0] == pytest.approx(records[-1]["seconds"], abs=0.06)
    assert records[0]["train/learning_rate"] > 0.99e-3, "the first step begins at the top"
    passed = [0.0, 0.0, *(record["seconds"] for record in records)]
    for place, record in enumerate(records):
        # it falls with the clock, as that stood before the step or the one before it
        high, low = (1e-3 * (1 - passed[place + k] / 0.4) for k in (0, 1))
        assert low - 2e-6 <= record["train/learning_rate"] <= high + 2e-6, f"step {place + 1}"


def test_the_memory_of_a_run_is_told_part_by_part(small_run: Work) -> None:
    """Four bytes a weight, four a gradient, two moments of four and a count of four a tensor."""
    runs = [small_run(method, train={"max_steps": 1, **QUIET}) for method in ("full", "lora")]
    for run in runs:
        event = record_reader.last_event(run, "memory")
        model = record_reader.last_event(run, "model")
        assert event["weights"] == 4 * model["parameters"], run.id
        assert event["gradients"] == 4 * model["trainable"]
        extra = event["optimizer"] - 8 * model["trainable"]
        assert 0 <= extra <= 4 * 100, "two moments, and a counter for each tensor"
    full, lora = (record_reader.last_event(run, "model") for run in runs)
    assert full["trainable"] == full["parameters"] > lora["trainable"]


# -- commands ---------------------------------------------------------------------------


def test_stop_ends_with_a_checkpoint_an_evaluation_and_a_result(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 3, command("stop"))
    run = small_run("lora", train={"max_steps": 9, **QUIET})
    assert status(run).state == "stopped" and run.artifact.is_dir()
    last = record_reader.metrics(run, "train")[-1]["step"]
    assert last in (3, 4), "at the next step, not later"
    assert steps(run, "eval") == [last] and steps(run, "checkpoint") == [last]


def test_stop_at_the_last_step_is_the_end(small_run: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 4, command("stop"))
    run = small_run("lora", train={"max_steps": 4, **QUIET})
    assert status(run).state == "done" and steps(run, "checkpoint") == []


def test_cancel_leaves_no_result(small_run: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 3, command("cancel"))
    run = small_run("lora", train={"max_steps": 9, **QUIET})
    assert status(run).state == "cancelled"
    assert not run.artifact.exists() and not list(run.checkpoints.glob("step-*"))
    assert record_reader.metrics(run, "train")[-1]["step"] in (3, 4)


def test_save_writes_one_checkpoint_and_goes_on(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 3, command("save"))
    run = small_run("lora", train={"max_steps": 9, **QUIET})
    assert status(run).state == "done" and record_reader.metrics(run, "train")[-1]["step"] == 9
    saved = steps(run, "checkpoint")
    assert len(saved) == 1 and saved[0] in (3, 4), "answered once"
    assert not (run.commands / "save").exists()


def test_the_most_urgent_command_is_answered(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_all(run: RunDir) -> None:
        for name in ("save", "stop", "cancel"):
            command(name)(run)

    at_step(monkeypatch, 2, give_all)
    assert status(small_run("lora", train={"max_steps": 9, **QUIET})).state == "cancelled"
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["stop", "cancel"])
def test_before_the_first_step_there_is_nothing_to_save(
    small_run: Work, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    enter = Telemetry.enter_phase

    def command_while_loading(self: Telemetry, phase: str) -> None:
        enter(self, phase)
        if phase == "tokenising":
            command(name)(self.run)

    monkeypatch.setattr(Telemetry, "enter_phase", command_while_loading)
    run = small_run("lora", train={"max_steps": 3, **QUIET})
    state = {"stop": "stopped", "cancel": "cancelled"}[name]
    assert status(run).state == state and record_reader.metrics(run, "train") == []


# -- checkpoints ------------------------------------------------------------------------


def test_a_checkpoint_knows_its_own_evaluation_only(small_run: Work) -> None:
    """keep_best ranks by it: a checkpoint without one must not carry the loss of another step."""
    train = {"max_steps": 7, "eval_steps": 2, "save_steps": 1, "keep_last": 9}
    run = small_run("lora", train=train)
    evals = {
        record["step"]: record["eval/loss"]
        for record in record_reader.metrics(run, "eval")
        if record["step"]
    }
    for step in range(1, 7):
        state = read_object(run.checkpoints / f"step-{step}" / "state.json") or {}
        assert state["eval_loss"] == evals.get(step), f"step {step}"
        assert state["used"]["step"] == step
        best = min((loss for at, loss in evals.items() if at <= step), default=float("inf"))
        assert state["best_loss"] == best


def test_a_checkpoint_that_a_person_pins_meanwhile_stays(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 3, lambda run: checkpoints.pin(run, 2))
    train = {"max_steps": 6, "eval_steps": 0, "save_steps": 1, "keep_best": 0, "keep_last": 1}
    run = small_run("lora", train=train)
    assert [row.step for row in checkpoints.table(run)] == [2, 5]


def test_room_on_the_disk_is_counted_for_weights_and_moments(
    small_run: Work, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full fine-tuning: three numbers of four bytes a weight, and fifty megabytes left free."""
    usage = callbacks.shutil.disk_usage
    weights = load_file(small_model / "model.safetensors").values()
    needed = 12 * sum(weight.numel() for weight in weights) + callbacks.ROOM_BYTES
    free: list[int] = []

    def disk_usage(path: Any) -> Any:
        found = usage(path)
        return found._replace(free=free[-1]) if free else found  # the planner sees the real disk

    monkeypatch.setattr(callbacks.shutil, "disk_usage", disk_usage)
    at_step(monkeypatch, 1, lambda run: free.append(needed - 100_000))
    at_step(monkeypatch, 3, lambda run: free.append(needed + 100_000))
    train = {"max_steps": 5, "eval_steps": 0, "save_steps": 2}
    run = small_run("full", train=train)
    assert steps(run, "checkpoint") == [4], "too little room at step 2, enough at 4"
    assert "step 2 was not saved" in warnings(run)
    assert re.search(r"\b100\.\d+ kB are missing", warnings(run))


def test_rows_of_a_broken_step_are_named(
    small_run: Work, monkeypatch: pytest.MonkeyPatch, small_tokenizer: Any
) -> None:
    """A loss that is no number at the second of four steps: the rows of that step, no others."""

    from lab.data import prepare
    from lab.data.batches import TrainingOrder
    from lab.spec import RunSpec
    from lab.train import loop

    loss, calls = loop.summed_loss, []

    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        total: torch.Tensor = loss(*args, **kwargs)
        if type(total) is not torch.Tensor:  # the forecast traces the same step on fakes
            return total
        calls.append(1)
        return total * float("nan") if len(calls) in (3, 4) else total

    monkeypatch.setattr(loop, "summed_loss", broken)
    train = {"max_steps": 4, "batch_size": 2, "gradient_accumulation_steps": 2, **QUIET}
    run = small_run("lora", train=train)
    assert status(run).state == "failed"
    spec = RunSpec.from_stored(json.loads(run.spec.read_text()))
    stream = TrainingOrder(prepare.prepare(spec, small_tokenizer).train, spec.train.seed)
    rows = sorted(stream[place].sources[0] for place in range(4, 8))
    now = status(run)
    assert f"became nan at step 2, on rows {', '.join(map(str, rows))} of" in now.message
    assert "learning_rate" in now.hint
    last = record_reader.metrics(run, "train")[-1]
    assert last["step"] == 2 and last["train/loss"] != last["train/loss"], "NaN is kept as NaN"


def test_a_gradient_norm_that_is_not_finite_ends_the_run(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.train import loop

    monkeypatch.setattr(loop, "_clip", lambda *args: torch.tensor(float("inf")))
    now = status(small_run("lora", train={"max_steps": 2, **QUIET}))
    assert now.state == "failed" and "The gradient norm became inf at step 1" in now.message


def test_a_tensor_of_one_element_becomes_the_number_in_a_record(
    work_here: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step gives is a tensor, on a GPU one that may not be read at once."""
    from lab.train.step_recorder import StepRecorder

    flush = StepRecorder.flush

    def with_tensor(self: StepRecorder) -> None:
        if self._pending is not None:
            step_s = torch.tensor(self._pending["perf/step_s"], dtype=torch.float64)
            self._pending["perf/step_s"] = step_s
        flush(self)

    monkeypatch.setattr(StepRecorder, "flush", with_tensor)
    run = work_here(train={"max_steps": 2, **QUIET})
    assert status(run).state == "done"
    records = record_reader.metrics(run, "train")
    assert [record["step"] for record in records] == [1, 2]
    assert all(isinstance(record["perf/step_s"], float) for record in records)
    assert all(record["perf/tokens_per_s"] > 0 for record in records)
