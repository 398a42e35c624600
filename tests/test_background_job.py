"""Work in a process of its own: its record says how far it is, and what became of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lab import background_job, process
from lab.atomic_files import read_object, write_json
from lab.background_job import JobRecord
from lab.errors import LabError


@pytest.fixture
def file(lab_home: Path) -> Path:
    return lab_home / "job.json"


def test_the_record_tells_phases_and_keeps_what_the_work_returns(file: Path) -> None:
    assert background_job.read(file) is None
    seen = []

    def work(request: Any, tell: Any) -> dict[str, Any]:
        for phase in ("reading", "writing"):
            tell(phase)
            record = background_job.read(file)
            assert record is not None and record.is_active, "This process works at it."
            seen.append(record.phase)
        return {"bytes": 7}

    assert background_job.work(file, work) == 0
    record = background_job.read(file)
    assert record is not None and seen == ["reading", "writing"]
    assert (record.finish, record.result, record.is_active) == ("done", {"bytes": 7}, False)


def test_a_refusal_and_a_bug_are_both_told(file: Path) -> None:
    def refuse(request: Any, tell: Any) -> dict[str, Any]:
        raise LabError("The disk is full.", "Free some space.")

    assert background_job.work(file, refuse) == 1
    record = background_job.read(file)
    assert record is not None
    assert (record.finish, record.error, record.hint) == (
        *("failed", "The disk is full."),
        "Free some space.",
    )

    def fail(request: Any, tell: Any) -> dict[str, Any]:
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        background_job.work(file, fail)
    record = background_job.read(file)
    assert record is not None and record.error == "ZeroDivisionError: by zero"


def test_one_at_a_time_and_the_end_of_the_process_is_seen(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that does nothing but wait stands for the work."""
    import subprocess
    import sys

    children = []

    def spawn(arguments: list[str], log: Path, **more: Any) -> Any:
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
        )
        children.append(child)
        return child

    monkeypatch.setattr(process, "spawn", spawn)
    background_job.start(file, ["x"], {"step": 3})
    record = background_job.read(file)
    assert record is not None and record.is_active and record.request == {"step": 3}
    with pytest.raises(LabError, match="already"):
        background_job.start(file, ["x"])
    assert len(children) == 1
    assert background_job.stop(file)
    children[0].wait(10)
    record = background_job.read(file)
    assert record is not None and record.finish == "interrupted"
    assert not background_job.stop(file), "There is nothing left to end."
    background_job.start(file, ["x"])
    children[1].send_signal(signal.SIGKILL)
    children[1].wait(10)


def test_a_record_that_holds_anything_is_read(file: Path) -> None:
    write_json(file, {"phase": 3, "finish": "done", "result": [1], "process": "x", "ended": "no"})
    record = background_job.read(file)
    assert record == JobRecord(finish="done")
    write_json(file, {"process": {"pid": os.getpid(), "start": 1}})
    record = background_job.read(file)
    assert record is not None and record.finish == "interrupted", "Another process has that pid."
    file.write_text("{")
    assert background_job.read(file) is None and read_object(file) is None
