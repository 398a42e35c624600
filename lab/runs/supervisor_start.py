"""Sees to it that a supervisor runs: starts it by its name, and never imports it."""

from __future__ import annotations

from pathlib import Path

from lab import paths, process
from lab.atomic_files import read_object
from lab.hub import credentials
from lab.paths import RunDir
from lab.runs import escalation, queue


def record_file() -> Path:
    return queue.folder() / "process.json"


def is_running() -> bool:
    return process.is_alive(read_object(record_file()))


def ensure() -> None:
    """Start the supervisor if none runs. Two at once: one gets the lock, the other ends."""
    if is_running():
        return
    paths.make_folder(queue.folder())
    log = queue.folder() / "log.txt"
    process.spawn(["lab.runs.supervisor"], log, access=credentials.access_line())


def ensure_if_waiting() -> None:
    """Called by whoever looks: if runs wait and nobody starts them, one was about to be started
    when the supervisor was killed, or a worker was told to end and nobody sees to it, start a
    supervisor."""
    if is_running():
        return
    if (queue.waiting_runs() and not queue.settings().paused) or any(
        queue.is_claimed(run) or _is_ending(run) for run in paths.all_runs()
    ):
        ensure()


def _is_ending(run: RunDir) -> bool:
    """Whether a worker was told to end, or was killed, and has left no result yet."""
    if run.result.exists() or not run.process.exists():
        return False
    has_command = any((run.commands / name).exists() for name in escalation.COMMANDS)
    return run.killed.exists() or (has_command and process.is_alive(read_object(run.process)))
