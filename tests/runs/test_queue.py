"""The queue: order, pause, rules; a supervisor that may be killed at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lab import paths, process
from lab.atomic_files import read_object, write_json
from lab.errors import LabError, SpecError
from lab.paths import RunDir
from lab.runs import (
    actions,
    chat_memory,
    deadlines,
    index,
    queue,
    record_reader,
    supervisor,
    supervisor_start,
)
from lab.runs.status import status


@pytest.fixture
def waiting(make_spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`waiting(n)`: n runs in the queue, and nobody who starts them."""
    monkeypatch.setattr(supervisor_start, "ensure", lambda: None)

    def make(count: int, **sections: Any) -> list[RunDir]:
        from tests.answers import checked

        plan = checked(make_spec("lora", **sections))
        created = []
        for _ in range(count):
            run = actions.create_run_dir(plan)
            actions.submit(run)
            created.append(run)
        return created

    return make


def test_order_priority_and_withdrawal(waiting: Callable[..., list[RunDir]]) -> None:
    first, second, third = waiting(3)
    assert queue.waiting_runs() == [first, second, third]
    assert {status(run).state for run in queue.waiting_runs()} == {"queued"}
    queue.reorder(third, first=True)
    assert queue.waiting_runs() == [third, first, second]
    queue.reorder(second, priority=5)
    assert queue.waiting_runs() == [second, third, first]
    queue.reorder(first, first=True)
    assert queue.waiting_runs() == [first, second, third], (
        "to the front means before a higher priority"
    )
    actions.command(first, "cancel")
    assert status(first).state == "cancelled" and queue.waiting_runs() == [second, third]
    with pytest.raises(LabError, match="does not wait"):
        queue.reorder(first, first=True)
    actions.delete(second)
    assert queue.waiting_runs() == [third]


def test_a_run_is_started_or_withdrawn_never_both(waiting: Callable[..., list[RunDir]]) -> None:
    first, second = waiting(2)
    assert queue.withdraw(first) and not queue.claim(first)
    assert queue.claim(second) and not queue.withdraw(second)
    assert queue.waiting_runs() == [] and status(second).state == "queued"
    queue.recover()  # the supervisor that had claimed it was killed before it started it
    assert queue.waiting_runs() == [second]
    actions.delete(second)
    assert status(second).state == "deleted"


def test_who_looks_sees_to_a_run_that_a_killed_supervisor_was_about_to_start(
    waiting: Callable[..., list[RunDir]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = waiting(1)
    assert queue.claim(run) and queue.waiting_runs() == []
    ensured: list[str] = []
    monkeypatch.setattr(supervisor_start, "ensure", lambda: ensured.append(run.id))
    supervisor_start.ensure_if_waiting()
    assert ensured == [run.id], "a new supervisor puts it back into the line"
    process.register(run, os.getpid())
    supervisor_start.ensure_if_waiting()
    assert ensured == [run.id], "it was started"
    queue.recover()
    assert run.claim.exists(), "and is not put back into the line"
    run.process.unlink()
    write_json(run.result, {"state": "cancelled"})
    queue.recover()
    assert run.claim.exists(), "nor is one that has ended"


def test_what_holds_a_run_back_is_said(
    waiting: Callable[..., list[RunDir]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = waiting(2)
    started: list[str] = []
    loop = supervisor.Supervisor()
    monkeypatch.setattr(loop, "_start", lambda run, gpu: started.append(run.id))
    actions.set_paused()
    assert loop.tick() is False
    assert status(one).message == "The queue is paused."
    actions.set_paused(False)
    monkeypatch.setattr(queue, "active", lambda: [RunDir(one.path.parent / "other")])
    loop.tick()
    assert "Waiting for other to end" in status(one).message
    monkeypatch.setattr(queue, "active", lambda: [two])
    index.rename(two, "wren lora")
    loop.tick()
    assert "Waiting for wren lora to end" in status(one).message, "by its name, where it has one"
    queue.change(at_once=3)
    write_json(one.estimate, {"peak_bytes": 9e15})
    loop.tick()
    assert "needs about 9000000.0 GB" in status(one).message
    assert started == [], "nobody overtakes the one in front"
    monkeypatch.setattr(queue, "active", list)
    loop.tick()
    assert started == [one.id, two.id], "alone, a run may always try"


def machine_with(monkeypatch: pytest.MonkeyPatch, available: float) -> SimpleNamespace:
    """A machine without a GPU and with so many bytes of memory free."""
    import psutil

    memory = SimpleNamespace(available=available, total=8 * available)
    monkeypatch.setattr(supervisor.host, "gpus", list)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return memory


def test_a_run_waits_for_memory_that_others_have_yet_to_take(
    waiting: Callable[..., list[RunDir]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two run; one has taken all that it will need, one nothing yet."""
    big, small, run = waiting(3)
    for other, peak in ((big, 8e9), (small, 1e6), (run, 3e9)):
        write_json(other.estimate, {"peak_bytes": peak})
    process.register(small, os.getpid())  # more than its megabyte is in use
    write_json(big.process, {"pid": 2**30})  # not a byte
    monkeypatch.setattr(queue, "active", lambda: [big, small])
    queue.change(at_once=3)
    loop = supervisor.Supervisor()
    monkeypatch.setattr(loop, "_start", lambda started, gpu: None)
    reserve = supervisor.RESERVE_BYTES
    free = machine_with(monkeypatch, 8e9 + 3e9 + reserve - 5e5)
    loop.tick()
    assert queue.waiting_runs() == [run], "half a megabyte of the reserve is missing"
    assert "needs about 3.0 GB, 3.3 GB free" in status(run).message
    free.available = 8e9 + 3e9 + reserve + 5e5
    loop.tick()
    assert queue.waiting_runs() == [], "there is room for all three, and the reserve"


@pytest.mark.parametrize(
    ("taken", "room"),
    [(9_000_000_000, ("GPU-b", 9e9)), (6_000_000_000, ("GPU-b", 7e9)), (0, ("GPU-a", 4e9))],
)
def test_what_a_run_has_taken_of_its_gpu_is_not_counted_twice(
    waiting: Callable[..., list[RunDir]], monkeypatch: pytest.MonkeyPatch, taken: int, room: Any
) -> None:
    (other,) = waiting(1)
    write_json(other.estimate, {"peak_bytes": 8e9})
    write_json(other.process, {"pid": 2**30, "gpu": "GPU-b"})
    free = {"GPU-a": 4e9, "GPU-b": 9e9}
    cards = [SimpleNamespace(uuid=uuid, free_bytes=size) for uuid, size in free.items()]
    monkeypatch.setattr(supervisor.host, "gpus", lambda: cards)
    monkeypatch.setattr(supervisor.host, "gpu_bytes_of", lambda pids: taken)
    assert supervisor.room_for_a_run([other]) == room, "what it has yet to take is not free"


def test_a_run_waits_for_memory_that_the_chat_holds_and_starts_once_it_is_back(
    waiting: Callable[..., list[RunDir]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = waiting(1)
    write_json(run.estimate, {"peak_bytes": 3e9})
    record = process.identity(os.getpid())  # this process stands for the chat
    chat = paths.make_folder(paths.home() / "chat") / "process.json"
    write_json(chat, record)
    monkeypatch.setattr(chat_memory, "resident_bytes", lambda pid: 2_000_000_000)
    loop = supervisor.Supervisor()
    started: list[str] = []
    monkeypatch.setattr(loop, "_start", lambda started_run, gpu: started.append(started_run.id))
    free = machine_with(monkeypatch, 2e9)
    assert loop.tick() is True and started == [], "It goes on looking."
    message = status(run).message
    assert "needs about 3.0 GB, 2.0 GB free, and the chat holds 2.0 GB" in message
    assert chat_memory.HOLDS in message, "Pages offer to free it."
    free.available = 1e9
    loop.tick()
    assert started == [run.id], "It would not fit without the chat either: it may try."
    (run,) = waiting(1)
    write_json(run.estimate, {"peak_bytes": 3e9})
    free.available = 2e9
    loop.tick()
    assert queue.waiting_runs() == [run]
    chat.unlink()
    loop.tick()
    assert started[-1] == run.id, "The chat has ended."


def test_settings_are_checked() -> None:
    with pytest.raises(SpecError, match="at least 1"):
        queue.change(at_once=0)
    assert queue.change(at_once=2).at_once == 2 and queue.settings().at_once == 2
    assert queue.change(paused=True).at_once == 2, "the other settings stay"
    (queue.folder() / "settings.json").write_text("{garbage")
    assert queue.settings() == queue.QueueSettings()


@pytest.mark.parametrize("end", ["failed", "crashed", "stopped"])
def test_a_failure_pauses_the_queue_if_asked(
    waiting: Callable[..., list[RunDir]], end: str
) -> None:
    (run,) = waiting(1)
    queue.change(continue_after_failure=False)
    loop = supervisor.Supervisor()
    loop.seen_active = {run.id}
    if end == "crashed":
        write_json(run.process, {"pid": 2**30})  # it is gone without a result
    else:
        write_json(run.result, {"state": end})
    assert status(run).state == end
    loop.tick()
    assert queue.settings().paused == (end != "stopped")


def test_a_worker_that_does_not_answer_is_ended(
    waiting: Callable[..., list[RunDir]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = waiting(1)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
    process.register(run, child.pid)
    actions.command(run, "cancel")
    monkeypatch.setattr(deadlines, "CANCEL_S", 0.3)
    monkeypatch.setattr(deadlines, "TERM_S", {"cancel": 0.5})
    loop = supervisor.Supervisor()
    end = time.monotonic() + 10
    while child.poll() is None:
        loop.tick()
        assert time.monotonic() < end
        time.sleep(0.05)
    assert child.returncode == -signal.SIGKILL
    assert status(run).state == "cancelled" and "by force" in status(run).message


def test_killed_supervisors_lose_nothing_and_start_nothing_twice(
    start: Callable[..., RunDir],
) -> None:
    """Three runs, three kills: before, while, and after a run is started."""
    queue.change(at_once=2)
    runs = [start("lora", train={"max_steps": 4, "save_steps": 0}) for _ in range(3)]
    kills, end = 0, time.monotonic() + 150
    while not all(status(run).has_ended for run in runs):
        assert time.monotonic() < end, [status(run) for run in runs]
        started = sum(run.process.exists() for run in runs)
        record = read_object(supervisor_start.record_file())
        if kills < 3 and started >= kills and process.send(record, signal.SIGKILL):
            kills += 1
        supervisor_start.ensure_if_waiting()
        time.sleep(0.1)
    assert kills == 3
    for run in runs:
        assert status(run).state == "done"
        assert [e["attempt"] for e in record_reader.events(run, "plan")] == [1], "started once"
        steps = [record["step"] for record in record_reader.metrics(run, "train")]
        assert steps == [1, 2, 3, 4]


def test_two_supervisors_are_one(start: Callable[..., RunDir]) -> None:
    actions.set_paused()
    run = start("lora", train={"max_steps": 2})
    for _ in range(4):
        supervisor_start.ensure()
    end = time.monotonic() + 30
    while status(run).message != "The queue is paused.":  # one of them has come up
        assert time.monotonic() < end, status(run)
        time.sleep(0.05)
    record = read_object(supervisor_start.record_file())
    assert process.is_alive(record)
    time.sleep(0.5)  # for the others, which end
    assert read_object(supervisor_start.record_file()) == record
    log = (queue.folder() / "log.txt").read_text()
    assert "Traceback" not in log, log
    assert status(run).message == "The queue is paused."


def test_faults_in_short_form() -> None:
    """Two kills at random moments; `python -m lab bench faults --kills 200` in full."""
    command = [sys.executable, "-m", "lab", "bench", "faults", "--kills", "2", "--json"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, timeout=240)
    report = json.loads(done.stdout)
    assert report["kills"] == 2 and report["is_clean"], report
    assert done.returncode == 0


def test_a_worker_that_cannot_be_started_is_a_failed_run_and_the_next_one_starts(
    waiting: Callable[..., list[RunDir]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = waiting(2)

    def spawn(run: RunDir, *_: Any) -> Any:
        if run == first:
            raise OSError(12, "Cannot allocate memory")
        process.register(run, os.getpid())
        return SimpleNamespace(poll=lambda: None)

    monkeypatch.setattr(supervisor, "spawn_worker", spawn)
    loop = supervisor.Supervisor()
    loop.tick()
    now = status(first)
    assert now.state == "failed" and "Cannot allocate memory" in now.message, now
    assert list(loop.children) == [second.id]


def test_one_after_the_other_is_started_also_within_one_look(
    waiting: Callable[..., list[RunDir]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = waiting(3)
    queue.change(at_once=2)
    for run in (first, second, third):
        write_json(run.estimate, {"peak_bytes": 1})
    loop = supervisor.Supervisor()
    monkeypatch.setattr(loop, "_start", lambda run, gpu: process.register(run, os.getpid()))
    loop.tick()
    assert set(queue.active()) == {first, second} and queue.waiting_runs() == [third]


def test_a_supervisor_that_ends_looks_once_more_when_it_is_no_longer_counted_on(
    lab_home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever submits looks for the record: with it, nobody would start this run."""
    record = supervisor_start.record_file()
    looks: list[bool] = []

    def waiting_runs() -> list[RunDir]:
        looks.append(record.exists())
        return [RunDir(lab_home / "a run")] if len(looks) == 1 else []

    monkeypatch.setattr(queue, "waiting_runs", waiting_runs)
    monkeypatch.setattr(supervisor.Supervisor, "tick", lambda self: False)
    monkeypatch.setattr(supervisor, "IDLE_S", -1.0)
    assert supervisor.main() == 0
    assert looks == [False, False] and not record.exists(), "it stays for what came meanwhile"


def test_a_queue_that_is_paused_needs_no_supervisor(
    waiting: Callable[..., list[RunDir]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensured: list[int] = []
    waiting(1)
    monkeypatch.setattr(supervisor_start, "ensure", lambda: ensured.append(1))
    actions.set_paused()
    supervisor_start.ensure_if_waiting()
    assert not ensured, "every look would start one, which ends again"
    actions.set_paused(False)
    supervisor_start.ensure_if_waiting()
    assert len(ensured) == 2, "the one who lets it go on, and who looks"


def test_memory_of_a_process_is_what_it_really_has() -> None:
    import psutil

    resident = psutil.Process().memory_info().rss
    assert chat_memory.resident_bytes(os.getpid()) == pytest.approx(resident, rel=0.2)
    assert chat_memory.resident_bytes(2**30) == chat_memory.resident_bytes(None) == 0
