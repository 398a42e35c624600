"""A worker that waits with its imports behind it, and what a killed one leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import host, process
from lab.atomic_files import read_object
from lab.paths import RunDir
from lab.runs import actions, queue, supervisor, supervisor_start, warm_worker


def test_a_spare_worker_does_the_run_and_ends_with_its_supervisor(
    make_spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.answers import checked

    monkeypatch.setattr(supervisor_start, "ensure", lambda: None)
    actions.want_warm_worker()
    assert warm_worker.is_wanted()
    loop = supervisor.Supervisor()
    assert loop.tick(), "a supervisor stays while a spare is wanted"
    waiting = loop.spare.worker
    assert waiting is not None and waiting.poll() is None
    run = actions.create_run_dir(
        checked(make_spec("lora", train={"max_steps": 2, "save_steps": 0}))
    )
    actions.submit(run)
    loop.tick()
    assert (read_object(run.process) or {})["pid"] == waiting.pid, "the spare took the run"
    assert actions.wait(run, timeout_s=120) == "done"
    loop.tick()
    idle = loop.spare.worker
    assert idle is not None and idle.pid != waiting.pid, "another one for the next run"
    queue.change(spare=False)
    loop.tick()
    assert idle.wait(timeout=60) == 0, "no spare is wanted: its pipe closes, it ends by itself"


def test_a_dead_spare_starts_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    held = warm_worker.WarmWorker()
    held.worker = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    held.worker.wait()
    assert held.assign(run) is None and not run.process.exists()


def test_what_a_killed_worker_leaves_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    worker = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    record = process.identity(worker.pid)
    assert record is not None
    end = time.monotonic() + 10
    while len(process.group_members(worker.pid)) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    worker.kill()  # the worker alone: its child lives on
    worker.wait()
    loop = supervisor.Supervisor()
    monkeypatch.setattr(supervisor, "RETURN_S", 0.0)
    loop.killed["a-run"] = (record, time.monotonic())
    assert loop.tick(), "it goes on looking"
    assert "of its processes 1 did not end" in queue.unreleased_memory()[0]
    subprocess.run(["kill", *map(str, process.group_members(worker.pid))], check=True)
    end = time.monotonic() + 10
    while loop.killed:
        assert time.monotonic() < end
        loop.tick()
        time.sleep(0.05)
    assert queue.unreleased_memory() == []
    assert host.gpu_bytes_of([worker.pid]) == 0


def test_a_spare_that_dies_while_it_is_told_leaves_the_run_untouched(tmp_path: Path) -> None:
    run, held = RunDir(tmp_path), warm_worker.WarmWorker()

    def write(line: bytes) -> None:
        raise BrokenPipeError

    stdin = SimpleNamespace(write=write, close=lambda: None)
    dying: Any = SimpleNamespace(pid=os.getpid(), stdin=stdin, poll=lambda: None)
    held.worker = dying
    assert held.assign(run) is None, "another worker is started for it"
    assert not run.process.exists(), "without one it would look crashed"
