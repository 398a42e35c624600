"""Runs are made, stopped, resumed and deleted only from the states that allow it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lab import paths, process
from lab.atomic_files import read_object, write_json
from lab.checked_run import CheckedRun, read_forecast, read_stats
from lab.errors import LabError
from lab.forecasts import DatasetStats, Forecast, MemoryForecast
from lab.paths import RunDir
from lab.runs import actions, hub_access, queue, supervisor_start
from lab.runs.status import status
from lab.spec import RunSpec


@pytest.fixture(autouse=True)
def nobody_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_start, "ensure", lambda: None)
    monkeypatch.setattr(supervisor_start, "ensure_if_waiting", lambda: None)


RESOLVED = {
    "precision": "float32", "adapter_precision": "float32", "learning_rate": 1e-3,
    "activation_checkpointing": "off", "compile": "off",
}  # fmt: skip
PLAN = CheckedRun(
    RunSpec.from_json({"train": RESOLVED}),
    {"method": "lora", "train": {"learning_rate": "auto"}},
    DatasetStats(examples=3),
    Forecast(MemoryForecast(peak_bytes=5)),
)


@pytest.fixture
def run(lab_home: Path) -> RunDir:
    return actions.create_run_dir(PLAN)


def end(run: RunDir, state: str) -> None:
    write_json(run.process, {"v": 1, "pid": 999_999, "start": 1})
    write_json(run.result, {"state": state})


def begin(run: RunDir) -> None:
    """As if this process were its worker."""
    queue.claim(run)
    process.register(run, os.getpid())


def test_a_run_holds_its_plan_from_the_first_moment(run: RunDir) -> None:
    stored = read_object(run.spec) or {}
    assert stored["requested"] == PLAN.requested, "As it was given, with autos unresolved."
    spec = PLAN.spec.to_json()
    assert {key: stored[key] for key in spec} == spec
    assert read_forecast(run) == PLAN.forecast and read_stats(run) == PLAN.stats
    assert paths.RUN_ID.fullmatch(run.id) and paths.all_runs() == [run]
    assert [path.name for path in paths.runs().iterdir()] == [run.id], "Nothing is left aside."
    assert paths.RUN_ID.fullmatch(paths.new_run_id("../Odd Name!"))


def test_stop_save_and_cancel_are_for_runs_at_work(run: RunDir) -> None:
    actions.submit(run)
    with pytest.raises(LabError, match="is queued, there is nothing to save"):
        actions.command(run, "save")
    assert run.queue.exists() and status(run).state == "queued", "It goes on waiting."
    begin(run)
    for name in ("save", "stop", "cancel"):
        actions.command(run, name)
        assert (run.commands / name).exists()
    end(run, "done")
    for file in run.commands.iterdir():
        file.unlink()
    for name in ("save", "stop", "cancel"):
        with pytest.raises(LabError, match=f"is done, there is nothing to {name}"):
            actions.command(run, name)
    assert list(run.commands.iterdir()) == []


@pytest.mark.parametrize("name", ["stop", "cancel"])
def test_stopping_a_run_that_waits_takes_it_out_of_the_queue(run: RunDir, name: str) -> None:
    actions.submit(run)
    actions.command(run, name)
    assert status(run).state == "cancelled" and queue.waiting_runs() == []


@pytest.mark.parametrize("state", ["stopped", "failed", "cancelled"])
def test_a_run_that_has_ended_is_resumed_with_its_past_put_away(run: RunDir, state: str) -> None:
    end(run, state)
    (run.commands / "stop").touch()
    run.heartbeat.write_text("{}")
    write_json(run.environment, {"seed": 0})
    actions.resume(run, ["train.max_steps=77"], incomplete=True)
    assert status(run).state == "queued" and queue.waiting_runs() == [run]
    assert list(run.commands.iterdir()) == [], "An old command would stop it at once."
    names = {file.name for file in (run.attempts / "1").iterdir()}
    assert names == {"process.json", "result.json", "heartbeat", "environment.json"}
    assert not (run.result.exists() or run.process.exists())
    assert read_object(run.resume) == {"v": 1, "settings": {"max_steps": 77}, "incomplete": True}
    begin(run)
    end(run, state)
    actions.resume(run)
    assert (run.attempts / "2" / "resume.json").exists()


def test_runs_that_are_done_or_at_work_are_not_resumed(run: RunDir) -> None:
    end(run, "done")
    with pytest.raises(LabError, match="nothing left to train"):
        actions.resume(run)
    run.result.unlink()
    begin(run)
    with pytest.raises(LabError, match="is starting"):
        actions.resume(run)
    with pytest.raises(LabError, match="Stop it first"):
        actions.delete(run)
    assert run.path.is_dir() and not run.attempts.exists()


def test_a_run_that_never_came_into_the_queue_gets_there(run: RunDir) -> None:
    assert queue.waiting_runs() == []
    actions.resume(run)
    assert queue.waiting_runs() == [run] and not run.attempts.exists()
    with pytest.raises(LabError, match="is queued"):
        actions.resume(run)


def test_deleting_a_run_takes_all_of_it(run: RunDir) -> None:
    other = actions.create_run_dir(PLAN)
    actions.submit(run)
    (run.checkpoints / "step-4").mkdir()
    actions.delete(run)
    assert paths.all_runs() == [other]
    assert [path.name for path in paths.runs().iterdir()] == [other.id]


def test_a_run_that_is_just_being_started_is_not_deleted(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions.submit(run)
    assert queue.claim(run), "The supervisor has taken it, and its worker is not yet written down."
    monkeypatch.setattr(supervisor_start, "is_running", lambda: True)
    with pytest.raises(LabError, match="is being started"):
        actions.delete(run)
    assert run.spec.exists()
    monkeypatch.setattr(supervisor_start, "is_running", lambda: False)
    actions.delete(run)
    assert paths.all_runs() == [], "Nobody starts it any more."


def test_waiting_ends_with_the_run_or_with_patience(run: RunDir) -> None:
    actions.submit(run)
    started = time.monotonic()
    with pytest.raises(LabError, match="is still queued after"):
        actions.wait(run, poll_s=0.05, timeout_s=0.3)
    assert 0.25 < time.monotonic() - started < 20
    end(run, "failed")
    assert actions.wait(run, timeout_s=5) == "failed"


def test_a_disk_that_cannot_be_written_is_said(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab_home / "runs").write_text("a file in the way")
    with pytest.raises(LabError, match="cannot be written"):
        actions.create_run_dir(PLAN)


def test_a_run_whose_worker_begins_meanwhile_is_not_deleted(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions.submit(run)

    def too_late(run: RunDir) -> bool:
        begin(run)
        return False

    monkeypatch.setattr(queue, "withdraw", too_late)
    with pytest.raises(LabError, match="Stop it first"):
        actions.delete(run)
    assert run.spec.exists()


def test_the_token_is_handed_over_before_anybody_can_start_the_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[bool] = []
    monkeypatch.setattr(hub_access, "is_needed", lambda run: True)
    monkeypatch.setattr(hub_access, "hand_over", lambda run: waits.append(run.queue.exists()))
    actions.submit(run)
    assert waits == [False] and queue.waiting_runs() == [run]
