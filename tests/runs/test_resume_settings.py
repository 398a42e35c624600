"""Resuming with other settings, with lost state, and beginning with another run's result."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from lab.atomic_files import read_object, write_json
from lab.errors import LabError, SpecError
from lab.paths import RunDir
from lab.runs import actions, record_reader, resume_settings
from lab.runs.status import status
from lab.train import checkpoint
from lab.train.budget import rate
from tests.answers import check
from tests.conftest import attempt_here, run_here
from tests.runs.test_resume import assert_same_outcome

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def stopped(trained: list[RunDir], monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A LoRA run of 12 steps that has ended early, with checkpoints of steps 4 and 8."""
    monkeypatch.setattr(actions, "submit", lambda run: None)
    run = trained[1]
    result = read_object(run.result) or {}
    run.result.write_text(json.dumps(result | {"state": "stopped"}))
    return run


def warnings(run: RunDir) -> str:
    return "\n".join(event["message"] for event in record_reader.events(run, "warning"))


def test_other_settings_hold_from_the_checkpoint_on(stopped: RunDir) -> None:
    actions.resume(stopped, ["train.max_steps=10", "train.learning_rate=0.0001"])
    assert resume_settings.spec_of(stopped).train.max_steps == 10
    assert (read_object(stopped.spec) or {})["train"]["max_steps"] == 12, "as it was written"
    assert attempt_here(stopped) == 0
    records = record_reader.metrics(stopped, "train")
    assert [record["step"] for record in records] == list(range(1, 11))
    assert records[-1]["train/learning_rate"] < 1e-4
    assert "Settings changed from step 8 on: train.learning_rate 0.0001 (was 0.001)" in (
        warnings(stopped)
    )


@pytest.mark.parametrize(
    ("schedule", "change", "follows"),
    [
        ("cosine", {"max_steps": 20}, True), ("linear", {"epochs": 3.0}, True),
        ("constant", {"max_steps": 20}, False), ("cosine", {"learning_rate": 1e-4}, False),
    ],
)  # fmt: skip
def test_a_schedule_over_another_length_is_told(
    stopped: RunDir, schedule: str, change: dict[str, float], follows: bool
) -> None:
    spec = read_object(stopped.spec) or {}
    write_json(stopped.spec, spec | {"train": spec["train"] | {"lr_scheduler_type": schedule}})
    write_json(stopped.resume, {"v": 1, "settings": change})
    words = resume_settings.describe_changes(stopped)
    assert words.endswith("follows its schedule over the new length") == follows, words


def test_what_makes_another_run_is_refused_all_at_once(stopped: RunDir) -> None:
    settings = ["data.max_length=32", "train.batch_size=3", "train.seed=1", "train.max_steps=-2"]
    with pytest.raises(SpecError) as caught:
        actions.resume(stopped, settings)
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"data.max_length", "train.batch_size", "train.seed", "train.max_steps"}
    assert status(stopped).state == "stopped" and not stopped.attempts.exists()
    with pytest.raises(SpecError, match="it must stay 2 rows a step"):  # fewer are others, too
        actions.resume(stopped, ["train.batch_size=1"])
    actions.resume(stopped, ["train.batch_size=1", "train.gradient_accumulation_steps=2"])
    assert resume_settings.spec_of(stopped).train.gradient_accumulation_steps == 2


def test_what_was_changed_at_an_earlier_resume_still_holds(stopped: RunDir) -> None:
    actions.resume(stopped, ["train.learning_rate=0.0001", "train.weight_decay=0.5"])
    stopped.result.write_text(json.dumps({"state": "stopped"}))
    actions.resume(stopped, ["train.max_steps=30", "train.weight_decay=0.25"])
    stopped.result.write_text(json.dumps({"state": "failed"}))
    actions.resume(stopped)
    train = resume_settings.spec_of(stopped).train
    assert (train.learning_rate, train.max_steps, train.weight_decay) == (0.0001, 30, 0.25)


def test_a_finished_run_is_made_longer(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "submit", lambda run: None)
    run = trained[1]
    weights = (run.artifact / "adapter_model.safetensors").read_bytes()
    actions.resume(run, ["train.max_steps=20"])
    assert attempt_here(run) == 0
    assert status(run).state == "done" and record_reader.last_event(run, "plan")["resumed_at"] == 8
    records = record_reader.metrics(run, "train")
    assert [record["step"] for record in records] == list(range(1, 21)), "one history"
    rates = [record["train/learning_rate"] for record in records]
    expected = [
        1e-3 * rate(resume_settings.spec_of(run).train, step / 20, 1 / 20) for step in (8, 19)
    ]
    assert [rates[8], rates[19]] == pytest.approx(expected), "the schedule is that of 20 steps"
    assert "follows its schedule over the new length" in warnings(run)
    assert (run.attempts / "1" / "artifact" / "adapter_model.safetensors").read_bytes() == weights
    assert (run.artifact / "adapter_model.safetensors").read_bytes() != weights


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.max_steps=12"], "train.max_steps: is 12, and the run has used 12 already"),
        (["train.learning_rate=0.1"], "train.max_steps: is 12, and the run has used 12 already"),
        (["train.max_steps=null", "train.epochs=1"], "train.epochs: is 1"),
        (["train.max_steps=40", "train.max_tokens=5"], "train.max_tokens: is 5"),
        ([], "resume {id} --set train.max_steps=N"),
    ],
)
def test_a_finished_run_is_not_made_shorter(
    trained: list[RunDir], settings: list[str], says: str
) -> None:
    run = trained[1]
    with pytest.raises(LabError) as caught:
        actions.resume(run, settings)
    assert says.format(id=run.id) in str(caught.value)
    assert status(run).state == "done" and not run.attempts.exists(), "nothing was touched"


def test_a_finished_run_without_a_checkpoint_says_what_to_do(trained: list[RunDir]) -> None:
    run = trained[1]
    shutil.rmtree(run.checkpoints)
    with pytest.raises(LabError, match=f"init_from_run=run:{run.id}"):
        actions.resume(run, ["train.max_steps=40"])
    assert status(run).state == "done" and not run.attempts.exists(), "nothing was touched"


def test_lost_optimizer_state_is_refused_unless_allowed(stopped: RunDir) -> None:
    for folder in stopped.checkpoints.glob("step-*"):
        (folder / "optimizer.safetensors").unlink()
    actions.resume(stopped)
    assert attempt_here(stopped) == 1
    assert "None of 2 checkpoints is complete: step-8 lacks optimizer" in status(stopped).message
    assert "--incomplete" in status(stopped).hint
    actions.resume(stopped, incomplete=True)
    assert attempt_here(stopped) == 0
    assert "step-8 is missing optimizer.safetensors; that state is reset" in warnings(stopped)
    assert record_reader.last_event(stopped, "plan")["resumed_at"] == 8


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_on_begins_where_the_other_ended(
    trained: list[RunDir], make_spec: Make, method: str
) -> None:
    done = trained[0 if method == "full" else 1]
    before = record_reader.metrics(done, "eval")[-1]["eval/loss"]
    further = make_spec(method, train={"max_steps": 1, "learning_rate": 1e-9, "warmup_ratio": 0.0})
    run = run_here(further | {"init_from_run": f"run:{done.id}"})
    losses = [record["eval/loss"] for record in record_reader.metrics(run, "eval")]
    assert losses[0] > before + 0.01, "the base is measured as it is"
    assert losses[-1] == pytest.approx(before, abs=1e-4), "training began with the result"


def test_a_start_that_cannot_be_is_refused(trained: list[RunDir], make_spec: Make) -> None:
    full, lora = trained

    def refusal(spec: dict[str, Any]) -> str:
        return str([p["message"] for p in check(spec)["problems"] if p["field"] == "init_from_run"])

    assert "names no result" in refusal(make_spec("lora") | {"init_from_run": "base"})
    assert "is not a run id" in refusal(make_spec("lora") | {"init_from_run": "run:../x"})
    assert "another method" in refusal(make_spec("lora") | {"init_from_run": f"run:{full.id}"})
    other = make_spec("lora") | {"method": {"name": "lora", "rank": 3}}
    assert "(rank differ)" in refusal(other | {"init_from_run": f"run:{lora.id}"})


def test_a_disk_that_fills_in_mid_save_costs_one_checkpoint(
    work_here: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.train.step_recorder import StepRecorder

    sections = {"train": {"max_steps": 14}}
    whole = work_here("lora", **sections)
    add, hard = StepRecorder.add, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    adapter = (whole.checkpoints / "step-8" / "trainable.safetensors").stat().st_size
    limits = {5: int(1.5 * adapter), 9: hard}  # the adapter fits, its moments do not

    def limited(self: StepRecorder, *measured: Any) -> None:
        add(self, *measured)
        limit = limits.get(self.loop.batches.used.step)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    monkeypatch.setattr(StepRecorder, "add", limited)
    try:
        run = work_here("lora", **sections)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "The checkpoint of step 8 was not saved: " in warnings(run)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-12", "step-4"]
    assert all(checkpoint.verify(path) for path in run.checkpoints.iterdir())
    assert_same_outcome(whole, run)
