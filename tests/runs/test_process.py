"""Signals reach the process that was written down, and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import paths, process
from lab.atomic_files import write_json
from lab.paths import RunDir

WAIT = "import sys, time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started = []

    def begin(code: str = WAIT, **more: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **more)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield begin
    for begun in started:
        begun.kill()
        begun.wait()


def record_of(pid: int) -> dict[str, Any]:
    record = process.identity(pid)
    assert record is not None
    return record


def test_each_part_of_an_identity_counts(child: Any) -> None:
    record = record_of(child().pid)
    assert process.is_alive(record)
    for change in (
        {"start": record["start"] + 1}, {"start": None}, {"boot": "x"}, {"host": "x"},
        {"pid": 1}, {"pid": True}, {"pid": "1"}, {"pid": os.getpid()},
    ):  # fmt: skip
        assert not process.is_alive(record | change), change
    assert not process.is_alive(None) and not process.is_alive([])


def test_a_zombie_and_a_process_with_an_odd_name(child: Any, tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to(sys.executable)
    named = subprocess.Popen([str(odd), "-c", WAIT], stdout=subprocess.PIPE)
    try:
        assert named.stdout is not None
        named.stdout.readline()
        record = record_of(named.pid)
        assert process.is_alive(record)
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        age = uptime - record["start"] / os.sysconf("SC_CLK_TCK")
        assert -1 < age < 60, "It has just begun."
    finally:
        named.kill()
    deadline = time.monotonic() + 20
    while process.is_alive(record):  # not waited for: a zombie
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.identity(named.pid) is None
    named.wait()


def test_a_signal_goes_to_the_very_process_or_to_none(child: Any) -> None:
    running = child()
    record = record_of(running.pid)
    assert not process.send(record | {"start": record["start"] - 1}, signal.SIGKILL)
    assert not process.send_group(record | {"start": record["start"] - 1}, signal.SIGKILL)
    assert running.poll() is None, "Its pid was given out again, to somebody else."
    assert process.send(record, signal.SIGTERM)
    assert running.wait(timeout=20) == -signal.SIGTERM
    assert not process.send(record, signal.SIGTERM), "It is gone."


def test_a_group_is_signalled_only_by_its_leader(child: Any) -> None:
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert leader.stdout is not None
        member = record_of(int(leader.stdout.readline()))
        assert sorted(process.group_members(leader.pid)) == sorted([leader.pid, member["pid"]])
        assert process.send_group(member, signal.SIGTERM), "It leads no group: it alone is meant."
        deadline = time.monotonic() + 20
        while process.is_alive(member):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert leader.poll() is None
        assert process.send_group(record_of(leader.pid), signal.SIGTERM)
        assert leader.wait(timeout=20) == -signal.SIGTERM
    finally:
        leader.kill()
        leader.wait()


def test_what_is_spawned_has_a_session_and_this_home(
    lab_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.txt"
    shown = "import os; print(os.getsid(0) == os.getpid(), os.environ['LAB_HOME'], os.getcwd())"
    monkeypatch.delenv("LAB_HOME")
    monkeypatch.setattr(paths, "home", lambda: lab_home)
    started = process.spawn(["timeit", "-n", "1", "-r", "1", shown], log)
    assert started.wait(timeout=60) == 0, log.read_text()
    assert log.read_text().split()[:3] == ["True", str(lab_home), str(paths.ROOT)]


def test_a_worker_that_nobody_wrote_down_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    monkeypatch.setattr(process, "REGISTRATION_S", 0.2)
    with pytest.raises(SystemExit):
        process.await_registration(run)
    write_json(run.process, {"pid": os.getpid() + 1})
    with pytest.raises(SystemExit):
        process.await_registration(run)
    process.register(run, os.getpid())
    process.await_registration(run)
