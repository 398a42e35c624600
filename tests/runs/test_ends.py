"""How runs end when a person wants them to: in time, by force, before the first step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab import paths, process
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import (
    actions,
    deadlines,
    escalation,
    index,
    queue,
    record_reader,
    supervisor,
    supervisor_start,
)
from lab.runs.escalation import Watch
from lab.runs.heartbeat import Heartbeat
from lab.runs.status import status
from tests.conftest import attempt_here

# Beats twenty times a second. Its main thread gets on, or does not; SIGTERM ends it, or does not.
WORKER = """
import json, os, signal, sys, time
folder, beats, gets_on, dies_of_term = sys.argv[1], *map(int, sys.argv[2:5])
signal.signal(signal.SIGTERM, signal.SIG_DFL if dies_of_term else signal.SIG_IGN)
for count in range(2400):
    if beats or not count:
        state = {"phase": "training", "time": time.time(), "signs": count * gets_on, "step_s": 0.01}
        with open(folder + "/.beat", "w") as file:
            json.dump(state, file)
        os.replace(folder + "/.beat", folder + "/heartbeat")
    time.sleep(0.05)
"""

START = supervisor_start.ensure


@pytest.fixture
def worker(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[RunDir, subprocess.Popen[bytes]]]]:
    """`worker(beats=1, gets_on=1)`: a run with a small process that does as told, short deadlines,
    and nobody but the test who ticks."""
    monkeypatch.setattr(supervisor_start, "ensure", lambda: None)
    monkeypatch.setattr(deadlines, "HEART_S", 1.5)
    monkeypatch.setattr(deadlines, "QUIET_S", 1.5)
    monkeypatch.setattr(deadlines, "CANCEL_S", 0.2)
    monkeypatch.setattr(deadlines, "TERM_S", {"stop": 1.0, "cancel": 0.2})
    children: list[subprocess.Popen[bytes]] = []

    def begin(
        *, beats: int = 1, gets_on: int = 1, dies_of_term: int = 0
    ) -> tuple[RunDir, subprocess.Popen[bytes]]:
        run = RunDir(lab_home / "runs" / f"20260101-00000{len(children)}-lora-abcd")
        run.commands.mkdir(parents=True)
        write_json(
            run.spec,
            {
                "v": 1,
                "model": "builtin:smollm2-135m-instruct",
                "method": {"name": "lora"},
                "data": {},
                "train": {"precision": "float32"},
            },
        )
        flags = [str(flag) for flag in (beats, gets_on, dies_of_term)]
        child = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(run.path), *flags], start_new_session=True
        )
        children.append(child)
        process.register(run, child.pid)
        wait_until(run.heartbeat.exists, "the worker beats")
        return run, child

    yield begin
    for child in children:
        child.kill()
        child.wait()


def wait_until(is_so: Callable[[], bool], words: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"in time: {words}"
        time.sleep(0.02)


def tick_for(loop: supervisor.Supervisor, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        loop.tick()
        time.sleep(0.05)


def tick_until_ended(loop: supervisor.Supervisor, run: RunDir) -> None:
    def has_result() -> bool:
        loop.tick()
        return run.result.exists()

    wait_until(has_result, "the supervisor has ended it and written so")


def checkpoint(run: RunDir, step: int) -> None:
    (run.checkpoints / f"step-{step}").mkdir(parents=True)


def test_a_worker_that_gets_on_is_waited_for(worker: Any) -> None:
    run, child = worker()
    actions.command(run, "stop")
    tick_for(supervisor.Supervisor(), 4.0)  # more than deadline and SIGTERM together
    assert child.poll() is None and not run.killed.exists(), "it works, and is let work"
    now = status(run)
    assert now.state == "stopping" and "It ends after this step, about" in now.message, now


@pytest.mark.parametrize(
    ("beats", "gets_on", "why"), [(1, 0, "no progress for"), (0, 0, "no heartbeat for")]
)
def test_a_worker_that_stands_still_is_ended_and_it_is_said(
    worker: Any, beats: int, gets_on: int, why: str
) -> None:
    run, child = worker(beats=beats, gets_on=gets_on)
    checkpoint(run, 40)
    queue.change(continue_after_failure=False)
    actions.command(run, "stop")
    loop = supervisor.Supervisor()
    tick_until_ended(loop, run)
    assert child.wait(timeout=10) == -signal.SIGKILL, "it had ignored SIGTERM"
    now = status(run)
    assert now.state == "stopped", "what the lab has killed is no crash"
    assert why in now.message and "by the lab" in now.message, now.message
    assert "step 40" in now.message and "continues from step 40" in now.hint
    assert not queue.settings().paused, "it did not fail"
    loop.tick()
    assert queue.active() == []


@pytest.mark.parametrize(("command", "seconds"), [("stop", 60.0), ("cancel", 15.0)])
def test_a_worker_has_the_time_of_its_command_between_two_signals(
    command: str, seconds: float
) -> None:
    watch = Watch(command, 7, 0.0, Heartbeat(), 0.0, 0.0)
    warned = 10 * deadlines.QUIET_S
    assert watch.due(warned)[0] == signal.SIGTERM
    watch.term_at = warned
    assert watch.due(warned + seconds)[0] is None
    assert watch.due(warned + seconds + 1)[0] == signal.SIGKILL


def test_progress_after_the_warning_takes_it_back() -> None:
    watch = Watch("stop", 7, 0.0, Heartbeat(), 0.0, 0.0)
    quiet = deadlines.QUIET_S
    for second in range(0, int(2 * quiet), 50):  # beats, and stands still
        watch.look(Heartbeat(time=second, signs=1, slowest_s=1.0), float(second))
    number, why = watch.due(quiet + 100)
    assert number == signal.SIGTERM
    assert why == "no answer to 'stop', and no progress for 11 min 40 s"
    silent = Watch("stop", 7, 0.0, Heartbeat(), 0.0, 0.0)
    why = silent.due(deadlines.HEART_S + 30)[1]
    assert why == "no answer to 'stop', and no heartbeat for 2 min 30 s"
    watch.term_at = quiet + 100
    assert watch.due(quiet + 140)[0] is None, "SIGTERM is given a minute"
    assert watch.due(quiet + 200)[0] == signal.SIGKILL
    watch.look(Heartbeat(time=1, signs=2), quiet + 150)
    assert watch.due(quiet + 200)[0] is None, "it has got on: neither signal"
    assert watch.due(3 * quiet)[0] == signal.SIGTERM, "and is warned anew before it is killed"


def test_the_deadline_follows_the_slowest_recent_step() -> None:
    slow = Heartbeat("training", signs=5, slowest_s=300.0, step_s=290.0)
    watch = Watch("stop", 7, 0.0, Heartbeat(), 0.0, 0.0)
    for second in range(0, 4000, 100):
        watch.look(replace(slow, time=second), float(second))
    assert watch.due(2900.0)[0] is None, "ten of its steps have not passed"
    assert watch.due(3100.0)[0] == signal.SIGTERM
    words = deadlines.stopping(slow)
    assert words == (
        "It ends after this step, about 4 min 50 s. If it gives no sign of life for "
        "50 min 00 s, the lab ends it."
    )
    muted = Watch("stop", 7, 0.0, Heartbeat(), 0.0, 0.0)
    assert muted.due(deadlines.HEART_S + 1, is_muted=True)[0] is None, "a full disk silences it"


@pytest.mark.parametrize("first", ["stop", None])
def test_kill_is_at_once_and_by_a_person(worker: Any, first: str | None) -> None:
    run, child = worker()
    loop = supervisor.Supervisor()
    if first:
        actions.command(run, first)
        loop.tick()
    actions.command(run, "kill")
    tick_until_ended(loop, run)
    assert child.wait(timeout=10) == -signal.SIGKILL
    now = status(run)
    assert now.state == "stopped" and "a person asked" in now.message
    assert "nothing was saved" in now.message and "starts from the beginning" in now.hint


def test_stop_kill_on_the_command_line_with_a_supervisor_of_its_own(
    worker: Any, monkeypatch: pytest.MonkeyPatch, lab_json: Callable[..., Any]
) -> None:
    run, child = worker()
    monkeypatch.setattr(supervisor_start, "ensure", START)
    assert lab_json("stop", run.id, "--kill", "--wait")["state"] == "stopped"
    assert child.wait(timeout=10) == -signal.SIGKILL
    assert "a person asked" in status(run).message


def test_cancel_has_a_short_deadline_even_where_the_heart_beats(worker: Any) -> None:
    run, child = worker()
    actions.command(run, "stop")
    loop = supervisor.Supervisor()
    tick_for(loop, 0.3)
    actions.command(run, "cancel")
    tick_until_ended(loop, run)
    assert child.poll() is not None
    assert status(run).state == "cancelled" and "no answer to 'cancel'" in status(run).message


def test_a_worker_that_dies_of_sigterm_was_ended_by_the_lab(worker: Any) -> None:
    run, child = worker(gets_on=0, dies_of_term=1)
    actions.command(run, "stop")
    tick_until_ended(supervisor.Supervisor(), run)
    assert child.wait(timeout=10) == -signal.SIGTERM
    assert status(run).state == "stopped" and "by the lab" in status(run).message


def test_a_supervisor_killed_after_its_kill_leaves_no_crash(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, child = worker()
    actions.command(run, "kill")
    first = supervisor.Supervisor()
    first.escalation.look(run)  # and no further: as if it were killed here
    child.wait(timeout=10)
    assert not run.result.exists() and status(run).state == "stopped", "told from killed.json"
    started: list[int] = []
    monkeypatch.setattr(supervisor_start, "ensure", lambda: started.append(1))
    supervisor_start.ensure_if_waiting()
    assert started, "whoever looks starts the next one"
    supervisor.Supervisor().tick()
    assert (read_object(run.result) or {})["state"] == "stopped", "the next one completes it"
    started.clear()
    supervisor_start.ensure_if_waiting()
    assert not started, "then there is nothing to do"


def test_only_the_process_that_was_killed_is_meant(worker: Any) -> None:
    run, child = worker()
    record = read_object(run.process) or {}
    write_json(run.killed, {"state": "stopped", **record, "start": record["start"] - 1})
    child.kill()
    child.wait()
    assert status(run).state == "crashed", "another process had this pid"
    write_json(run.killed, {"state": "done", **record})
    assert status(run).state == "crashed", "a state that no kill has"
    queue_file, run_id = run.queue, run.id
    actions.resume(run)
    assert queue_file.exists() and status(paths.run_dir(run_id)).state == "queued"
    assert not run.killed.exists() and (run.attempts / "1" / "killed.json").exists()


def test_a_result_of_its_own_is_never_overwritten(worker: Any) -> None:
    run, child = worker()
    actions.command(run, "kill")
    loop = supervisor.Supervisor()
    loop.escalation.look(run)
    child.wait(timeout=10)
    write_json(run.result, {"state": "done", "message": "its own"})
    loop.tick()
    assert status(run).message == "its own"


def test_stop_before_the_first_step_says_that_nothing_was_to_be_saved(
    make_spec: Callable[..., dict[str, Any]],
    trained: list[RunDir],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.answers import checked

    monkeypatch.setattr(actions, "submit", lambda run: None)
    run = actions.create_run_dir(checked(make_spec("lora")))
    (run.commands / "stop").touch()
    assert attempt_here(run) == 0
    now = status(run)
    assert now.state == "stopped" and "before the first step" in now.message, now
    assert "nothing to save" in now.message and not run.artifact.exists()
    again = trained[1]
    result = read_object(again.result) or {}
    again.result.write_text(json.dumps(result | {"state": "stopped"}))
    actions.resume(again)
    (again.commands / "stop").touch()
    assert attempt_here(again) == 0
    assert "nothing to save since step 8" in status(again).message
    assert (again.artifact / "receipt.json").is_file(), "the result so far stays"


@pytest.mark.parametrize("command", ["stop", "cancel"])
def test_what_takes_long_before_the_first_step_is_interrupted(
    make_spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The main thread neither looks nor lets itself be stopped by an `except Exception`."""
    from lab.train.attempt import Attempt
    from tests.answers import checked

    def load(self: Attempt) -> None:
        (self.run.commands / command).touch()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                time.sleep(0.01)
            except Exception:
                continue
        raise AssertionError("nobody interrupted the loading")

    monkeypatch.setattr(Attempt, "_load_base", load)
    monkeypatch.setattr("lab.train.telemetry.SAMPLE_S", 0.1)
    run = actions.create_run_dir(checked(make_spec("lora")))
    began = time.monotonic()
    assert attempt_here(run) == 0
    assert time.monotonic() - began < 30
    assert status(run).state == {"stop": "stopped", "cancel": "cancelled"}[command]


def test_cancel_interrupts_a_long_step_and_stop_does_not(
    make_spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGTERM in the middle of a step, too, is answered when the step is done, with a save."""
    from lab.train import loop
    from tests.answers import checked

    step = loop.step
    asks: list[str] = []

    def slow(*args: Any) -> Any:
        if args[5] == 4:  # the number of the step
            if asks[0] == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                (run.commands / asks[0]).touch()
            end = time.monotonic() + (0.6 if asks[0] != "cancel" else 60)
            while time.monotonic() < end:
                time.sleep(0.01)
        return step(*args)

    monkeypatch.setattr(loop, "step", slow)
    monkeypatch.setattr("lab.train.telemetry.SAMPLE_S", 0.1)  # who interrupts looks so often
    plan = checked(make_spec("lora", train={"eval_steps": 0, "save_steps": 0}))
    for ask, state, saved in (("cancel", "cancelled", []), ("term", "stopped", ["step-4"])):
        asks[:] = [ask]
        run = actions.create_run_dir(plan)
        assert attempt_here(run) == 0
        assert status(run).state == state
        assert [path.name for path in run.checkpoints.glob("step-*")] == saved
        assert run.artifact.is_dir() == bool(saved)


def test_the_heartbeat_counts_what_the_main_thread_does(lab_home: Path) -> None:
    from lab.train.telemetry import Telemetry

    run = RunDir(lab_home / "run")
    run.path.mkdir(parents=True)
    telemetry = Telemetry(run, 1)
    telemetry.enter_phase("training")
    telemetry.sign()
    time.sleep(0.3)
    telemetry.progress(1, 2, "step")
    telemetry._write_heartbeat()
    beat = read_object(run.heartbeat) or {}
    telemetry._write_heartbeat()
    again = read_object(run.heartbeat) or {}
    telemetry.stop()
    assert beat["signs"] == 3 == again["signs"], "beats alone are no sign"
    assert 0.2 < beat["slowest_s"] < 5, "the longest silence between two signs"


def test_a_long_save_shows_signs_of_life(lab_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.train.telemetry import Telemetry

    monkeypatch.setattr("lab.train.telemetry.SAMPLE_S", 0.1)

    def signs() -> int:
        return int((read_object(run.heartbeat) or {}).get("signs", 0))

    run = RunDir(lab_home / "run")
    run.path.mkdir(parents=True)
    telemetry = Telemetry(run, 1)
    telemetry.enter_phase("saving")
    telemetry.start(dict)
    time.sleep(0.5)
    assert signs() == 1, "the records that it writes itself are no sign"
    with (lab_home / "large").open("wb") as file:
        file.write(bytes(3_000_000))
    wait_until(lambda: signs() >= 2, "a large file is one")
    telemetry.stop()


def test_a_copied_run_is_as_old_as_it_was(trained: list[RunDir], lab_home: Path) -> None:
    run, older = trained[1], trained[0]
    spec, first = read_object(run.spec) or {}, record_reader.events(run)[0]["time"]
    for file in (run.spec, run.events, run.path):
        os.utime(file, (first + 9e5, first + 9e5))
    assert index.entry(run).created == spec["created"], "what its spec says, not a file's time"
    assert 0 <= first - spec["created"] < 600, "it was created before its first event"
    assert 0 < spec["created"] - index.entry(older).created < 600, "in order"
    earlier = read_object(older.spec) or {}
    del earlier["created"]
    write_json(older.spec, earlier)
    os.utime(older.result)
    first = record_reader.events(older)[0]["time"]
    assert index.entry(older).created == pytest.approx(first), "an older lab's run: its first event"
    waits = RunDir(lab_home / "runs" / "20240229-120000-lora-abcd")
    waits.path.mkdir()
    write_json(waits.spec, {"v": 1})
    noon = time.mktime((2024, 2, 29, 12, 0, 0, 0, 0, -1))
    assert index.entry(waits).created == noon, "without an event, the time in its id"
    for garbage in ("", "{}\n", '{"time": "x"}\n', '{"time": -5}\n', '{"time": 1e300}\n', "[]\n"):
        waits.events.write_text(garbage)
        assert index.entry(waits).created == noon, garbage


def test_two_changes_at_one_moment_are_both_seen(lab_home: Path) -> None:
    """A copy, or a coarse clock, gives two files the same time."""
    run = RunDir(lab_home / "runs" / "20260101-000000-lora-abcd")
    run.path.mkdir(parents=True)
    write_json(run.spec, {"v": 1})
    write_json(run.result, {"state": "done"})
    index.update_labels(run, notes="one")
    moment = run.labels.stat().st_mtime_ns
    assert index.entry(run).notes == "one"
    index.update_labels(run, notes="two")
    os.utime(run.labels, ns=(moment, moment))
    assert index.entry(run).notes == "two"


def test_delete_waits_for_the_end(worker: Any) -> None:
    run, _ = worker()
    actions.command(run, "stop")
    with pytest.raises(LabError, match="Stop it first"):
        actions.delete(run)


def test_a_long_step_counts_before_its_silence_was_heard() -> None:
    assert deadlines.patience(Heartbeat(step_s=290.0, slowest_s=2.0)) == 2900.0
    assert deadlines.patience(Heartbeat(step_s=2.0, slowest_s=300.0)) == 3000.0
    assert deadlines.patience(Heartbeat(step_s=2.0, slowest_s=2.0)) == deadlines.QUIET_S


def test_killed_json_is_there_before_the_signal_and_all_that_the_worker_started_gets_it(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, child = worker()
    actions.command(run, "kill")
    signals: list[tuple[int, signal.Signals, bool]] = []

    def send_group(record: dict[str, Any], signum: signal.Signals) -> bool:
        signals.append((record["pid"], signum, run.killed.exists()))
        return True

    monkeypatch.setattr(process, "send_group", send_group)
    supervisor.Supervisor().escalation.look(run)
    assert signals == [(child.pid, signal.SIGKILL, True)]


def test_a_run_that_is_resumed_while_its_forced_end_is_written_keeps_no_result(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, child = worker()
    actions.command(run, "kill")
    loop, write = supervisor.Supervisor(), escalation.write_result
    loop.escalation.look(run)
    child.wait(timeout=10)

    def resumed_before(run: RunDir, result: Any) -> None:
        run.killed.unlink()  # a resume puts it away with its attempt
        write(run, result)

    monkeypatch.setattr(escalation, "write_result", resumed_before)
    loop.escalation.complete()
    assert not run.result.exists(), "the new attempt would count as ended"
