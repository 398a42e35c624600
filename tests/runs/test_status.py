"""One function decides the state, from files that may be missing, stale or damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import paths, process
from lab.atomic_files import write_json
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions, record_reader
from lab.runs.status import status


@pytest.fixture
def run(lab_home: Path) -> RunDir:
    folder = lab_home / "runs" / "20260101-000000-lora-abcd"
    (folder / "commands").mkdir(parents=True)
    return RunDir(folder)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield child
    child.kill()
    child.wait()


def test_from_queued_to_crashed(run: RunDir, sleeper: subprocess.Popen[bytes]) -> None:
    assert status(run).state == "queued"
    process.register(run, sleeper.pid)
    assert status(run).state == "starting"
    run.heartbeat.write_text(json.dumps({"phase": "training", "done": 3, "total": 12, "eta_s": 9}))
    now = status(run)
    assert (now.state, now.done, now.fraction, now.eta_s) == ("training", 3, 0.25, 9)
    actions.command(run, "stop")
    assert status(run).state == "stopping"
    (run.commands / "stop").unlink()
    beat = {"phase": "training", "done": 3, "total": 12, "time": time.time() - 61}
    run.heartbeat.write_text(json.dumps(beat))
    assert status(run).state == "stalled" and "not reported for 61 s" in status(run).message
    os.utime(run.process, (0, 0))
    run.heartbeat.unlink()
    assert status(run).state == "starting", "the time of a file says nothing: it may be a copy's"
    begun = json.loads(run.process.read_text())
    write_json(run.process, begun | {"time": time.time() - 61})
    assert status(run).state == "stalled", "a worker that never reports is told by its start"
    sleeper.kill()  # not waited for: a zombie is not alive
    time.sleep(0.2)
    assert status(run).state == "crashed"
    write_json(run.result, {"state": "done"})
    assert status(run).state == "done"


@pytest.mark.parametrize(
    ("done", "total", "fraction"),
    [(13.7, 12, 1.0), (1e300, 1e-300, 1.0), (-1, 12, 0.0), (3, 0, 0.0), (6, 12, 0.5)],
)
def test_a_bar_can_show_every_fraction(
    run: RunDir, sleeper: subprocess.Popen[bytes], done: float, total: float, fraction: float
) -> None:
    """A run overshoots its seconds by part of a step; a bar takes 0 to 1 and raises for others."""
    process.register(run, sleeper.pid)
    run.heartbeat.write_text(json.dumps({"phase": "training", "done": done, "total": total}))
    assert status(run).fraction == fraction


def test_a_pid_that_was_given_out_again_is_not_our_worker(
    run: RunDir, sleeper: subprocess.Popen[bytes]
) -> None:
    record = process.identity(sleeper.pid)
    assert record is not None and process.is_alive(record)
    for change in ({"start": record["start"] + 1}, {"boot": "another"}, {"host": "elsewhere"}):
        write_json(run.process, record | change)
        assert status(run).state == "crashed"
        assert not process.send(record | change, 9)  # type: ignore[arg-type]
    assert sleeper.poll() is None, "it was never signalled"


def test_an_end_by_force_is_that_of_this_worker_and_no_earlier_one(run: RunDir) -> None:
    worker = {"pid": 2**30, "start": 7, "boot": "here"}
    write_json(run.process, worker)
    ended = {"state": "stopped", "message": "Killed: a person asked.", "hint": "Resume it."}
    write_json(run.killed, worker | ended)
    assert (status(run).state, status(run).message) == ("stopped", ended["message"])
    for change in ({"pid": 2**30 - 1}, {"start": 8}, {"boot": "before"}, {"state": "done"}):
        write_json(run.killed, worker | ended | change)
        assert status(run).state == "crashed", f"another worker was killed: {change}"


@pytest.mark.parametrize("garbage", ["", "{", "[]", "null", '{"pid": "x"}', '{"pid": 0}', "\0\0"])
def test_garbage_in_the_files_of_the_contract(run: RunDir, garbage: str) -> None:
    for file in (run.process, run.heartbeat, run.result, run.spec, run.metrics, run.events):
        file.write_text(garbage)
    assert status(run).state == "crashed"
    assert record_reader.metrics(run, "train") == []


@pytest.mark.parametrize(
    "run_id",
    ["", "..", "../x", "a/b", "20260101-000000-lora-abcd/..", "x\0y", "a" * 10_000,
     "20260101-000000-lora-abcd\n", "２０260101-000000-lora-abcd", "20990101-000000-lora-zzzz"],
)  # fmt: skip
def test_hostile_run_ids(run: RunDir, run_id: str) -> None:
    with pytest.raises(LabError):
        paths.run_dir(run_id)


def test_a_link_out_of_the_home_is_no_run(run: RunDir, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = run.path.parent / "20260101-000001-lora-abcd"
    link.symlink_to(outside)
    assert [run.id for run in paths.all_runs()] == [run.id]
    with pytest.raises(LabError):
        paths.run_dir(link.name)


def test_readers_skip_an_unfinished_last_line(run: RunDir) -> None:
    line = json.dumps({"kind": "train", "step": 1, "train/loss": 2.0})
    run.metrics.write_text(line + "\n" + line[:20])
    records, offset = record_reader.read_lines(run.metrics)
    assert len(records) == 1 and offset == len(line) + 1
    run.metrics.write_text(line + "\n" + line + "\n")
    assert len(record_reader.read_lines(run.metrics, offset)[0]) == 1


def test_repeated_steps_supersede_the_earlier_ones() -> None:
    records = [{"kind": "train", "step": step, "attempt": 1, "x": step} for step in range(1, 8)]
    records += [{"kind": "train", "step": step, "attempt": 2, "x": -step} for step in (5, 6)]
    records_of_run = record_reader.continuous(records, "train")
    assert [record["x"] for record in records_of_run] == [1, 2, 3, 4, -5, -6]


def test_a_worker_that_ends_between_two_looks_has_not_crashed(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(run.process, {"pid": 2**30, "start": 7, "boot": "here"})

    def ends(record: object) -> bool:
        write_json(run.result, {"state": "done"})
        return False

    monkeypatch.setattr(process, "is_alive", ends)
    assert status(run).state == "done"


@pytest.mark.parametrize(
    ("name", "end"), [("kill", "crashed"), ("cancel", "cancelled"), ("stop", "crashed")]
)
def test_a_worker_that_was_told_to_end_is_stopping_until_it_is_gone(
    run: RunDir, sleeper: subprocess.Popen[bytes], name: str, end: str
) -> None:
    process.register(run, sleeper.pid)
    (run.commands / name).touch()
    assert status(run).state == "stopping"
    sleeper.kill()
    sleeper.wait()
    assert status(run).state == end, "a cancelled run has nothing to save"
