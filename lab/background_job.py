"""Work in a process of its own that tells its progress in a file: pages start it and read.

The file is written by whoever starts the work, then by the work itself; a lock beside it is held
for as long as that goes on, so that nobody starts it twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from lab import dataclass_json, paths, process
from lab.atomic_files import read_object, write_json
from lab.errors import LabError


@dataclass(frozen=True)
class JobRecord:
    """What is in the file. `finish` is "" during the work, then done, failed or interrupted; times
    are of the clock; `result` is what the work returns."""

    phase: str = "starting"
    finish: str = ""
    error: str = ""
    hint: str = ""
    started: float = 0.0
    ended: float = 0.0
    request: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    process: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        return not self.finish

    @property
    def seconds(self) -> float:
        return max(0.0, (self.ended or time.time()) - self.started)


def read(file: Path) -> JobRecord | None:
    """The record, None before the first start. Where the process is gone before its end, the work
    was interrupted."""
    record = dataclass_json.read(JobRecord, read_object(file))
    if record is not None and record.is_active and not process.is_alive(dict(record.process)):
        return replace(record, finish="interrupted")
    return record


def start(
    file: Path,
    arguments: list[str],
    request: Mapping[str, Any] | None = None,
    *,
    variables: Mapping[str, str] | None = None,
    access: bytes | None = None,
) -> None:
    """Begin `python -m ARGUMENTS`, which calls `work` on the same file. `request` is what it needs
    to know. Raises LabError while it is at work already."""
    paths.make_folder(file.parent)
    with _lock(file) as is_free:
        current = read(file)
        if not is_free or (current is not None and current.is_active):
            raise LabError("It is being made already.", "Wait until it ends, or stop it.")
        log = file.with_suffix(".log")
        child = process.spawn(arguments, log, variables=variables, access=access)
        record = JobRecord(
            started=time.time(),
            request=dict(request or {}),
            process=process.identity(child.pid) or {},
        )
        write_json(file, asdict(record), durable=False)


def stop(file: Path) -> bool:
    """End the work at once; whether there was any."""
    record = read(file)
    if record is None or not record.is_active:
        return False
    return process.send_group(dict(record.process), signal.SIGKILL)


def wait(file: Path, tell: Callable[[str], object], poll_s: float = 0.2) -> JobRecord:
    """Block until the work is over; `tell` gets each new phase."""
    phase = ""
    while True:
        record = read(file) or JobRecord(finish="interrupted")
        if record.phase != phase and record.is_active:
            phase = record.phase
            tell(phase)
        if not record.is_active:
            return record
        time.sleep(poll_s)


def work(
    file: Path,
    function: Callable[[Mapping[str, Any], Callable[[str], None]], Any],
) -> int:
    """Call `function(request, tell)` in this process and keep what it returns, a mapping or a
    dataclass, in the record; the exit code. `tell` gets each phase in words."""
    with _lock(file, wait=True):  # until whoever started this process has written the record
        record = dataclass_json.read(JobRecord, read_object(file)) or JobRecord()
        record = replace(
            record, finish="", error="", hint="", process=process.identity(os.getpid()) or {}
        )

        def write(**changes: Any) -> None:
            nonlocal record
            record = replace(record, **changes)
            write_json(file, asdict(record), durable=False)

        try:
            result = function(record.request, lambda phase: write(phase=phase))
        except LabError as error:
            write(finish="failed", error=error.message, hint=error.hint, ended=time.time())
            return 1
        except Exception as error:
            write(finish="failed", error=f"{type(error).__name__}: {error}", ended=time.time())
            raise  # the log has the traceback
        is_typed = is_dataclass(result) and not isinstance(result, type)
        stored = asdict(result) if is_typed else dict(result)
        write(finish="done", result=stored, ended=time.time())
        return 0


@contextlib.contextmanager
def _lock(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Yields whether the lock could be had; with `wait` it can in the end."""
    with file.with_suffix(".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
