"""What follows when a worker does not answer: SIGTERM, then SIGKILL, and a record of it.

*Stop* waits for as long as the worker shows that it works. Its heartbeat comes from a thread of
its own, so it says only that the process lives; `signs` in it counts what the main thread does
(steps, batches, tokens, phases). All times are this process's own, from when it first saw a command
or a change: no clock of another machine, no time of a file, and no sleep of a laptop counts.
"""

from __future__ import annotations

import shutil
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any

from lab import formatting, paths, process
from lab.atomic_files import read_object, write_json
from lab.paths import RunDir
from lab.runs import checkpoints, deadlines
from lab.runs.heartbeat import Heartbeat, read_heartbeat
from lab.runs.result import ForcedEnd, Result, forced_end, write_result

COMMANDS = ("kill", "cancel", "stop")
FULL_BYTES = 1_000_000


@dataclass
class Watch:
    """A command that a worker has not answered yet. Times are monotonic."""

    command: str
    pid: Any
    since: float
    beat: Heartbeat = Heartbeat()
    beat_at: float = 0.0
    sign_at: float = 0.0
    term_at: float | None = None
    was_killed: bool = False

    def look(self, beat: Heartbeat, now: float) -> None:
        """Notice whether the heart has beaten and the main thread has got on."""
        if beat != self.beat:
            self.beat_at = now
            if (beat.signs, beat.phase) != (self.beat.signs, self.beat.phase):
                self.sign_at = now
            self.beat = beat

    def overdue(self, now: float, is_muted: bool) -> str:
        """Why it is ended by force, in words; empty while it may take its time. On a full disk the
        worker `is_muted`: no heartbeat can be written."""
        if self.command == "kill":
            return "a person asked to kill it at once"
        waited = now - self.since
        if self.command == "cancel":
            seconds = formatting.duration(waited)
            return f"no answer to 'cancel' for {seconds}" if waited > deadlines.CANCEL_S else ""
        if now - self.beat_at > deadlines.HEART_S and not is_muted:
            silence = formatting.duration(now - self.beat_at)
            return f"no answer to 'stop', and no heartbeat for {silence}"
        if now - self.sign_at > deadlines.patience(self.beat):
            silence = formatting.duration(now - self.sign_at)
            return f"no answer to 'stop', and no progress for {silence}"
        return ""

    def due(self, now: float, is_muted: bool = False) -> tuple[signal.Signals | None, str]:
        """The signal that is due, and why."""
        why = self.overdue(now, is_muted)
        if not why:
            self.term_at = None  # it has got on since
            return None, ""
        if self.command == "kill":
            return (None if self.was_killed else signal.SIGKILL), why
        if self.term_at is None:
            return signal.SIGTERM, why
        if self.was_killed or now - self.term_at <= deadlines.TERM_S[self.command]:
            return None, why
        return signal.SIGKILL, why


class Escalation:
    """The supervisor's memory of what was asked of whom, and when."""

    def __init__(self) -> None:
        self.watches: dict[str, Watch] = {}
        self.unfinished = {
            run.id for run in paths.all_runs() if run.killed.exists() and not run.result.exists()
        }

    def look(self, run: RunDir) -> dict[str, Any] | None:
        """Send what is due to a run's worker; its process record if that was SIGKILL."""
        command = next((name for name in COMMANDS if (run.commands / name).exists()), None)
        if command is None:
            self.watches.pop(run.id, None)
            return None
        record, now = read_object(run.process) or {}, time.monotonic()
        watch = self.watches.get(run.id)
        if watch is None or (watch.command, watch.pid) != (command, record.get("pid")):
            watch = Watch(command, record.get("pid"), now, Heartbeat(), now, now)
            self.watches[run.id] = watch
        watch.look(read_heartbeat(run) or Heartbeat(), now)
        due, why = watch.due(now, shutil.disk_usage(run.path).free < FULL_BYTES)
        if due is None or not process.is_alive(record):
            return None
        print(f"{run.id}: {why}: {due.name}", flush=True)
        # before the signal: whatever happens to this process, the end is never called a crash
        write_json(run.killed, asdict(_killed(run, record, command, due, why)))
        self.unfinished.add(run.id)
        if due == signal.SIGTERM:
            watch.term_at = now
        else:
            watch.was_killed = True
        is_sent = process.send_group(record, due)
        return record if is_sent and due == signal.SIGKILL else None

    def complete(self) -> None:
        """Write the result of those whose workers are gone and left none."""
        for run_id in list(self.unfinished):
            run = RunDir(paths.runs() / run_id)
            killed = forced_end(run)
            if killed is None or run.result.exists():
                self.unfinished.discard(run_id)  # resumed, deleted, or it wrote its own
            elif not process.is_alive(read_object(run.process)):
                # the worker may have saved once more after the record was written
                message, hint = _words(run, killed.command, killed.why)
                ended = Result(killed.state, message, hint, ended=time.time(), killed=killed)
                write_result(run, ended)
                if not run.killed.exists():  # it was resumed between the two looks
                    run.result.unlink(missing_ok=True)
                self.unfinished.discard(run_id)


def _killed(
    run: RunDir, record: dict[str, Any], command: str, due: signal.Signals, why: str
) -> ForcedEnd:
    message, hint = _words(run, command, why)
    return ForcedEnd(
        pid=record.get("pid"),
        start=record.get("start"),
        boot=str(record.get("boot")),
        command=command,
        signal=due.name,
        why=why,
        state="cancelled" if command == "cancel" else "stopped",
        time=time.time(),
        message=message,
        hint=hint,
    )


def _words(run: RunDir, command: str, why: str) -> tuple[str, str]:
    """Who ended it, why, and what is left of it."""
    who = "Killed" if command == "kill" else "Ended by the lab by force"
    steps = [checkpoints.step_of(path) for path in checkpoints.listing(run.checkpoints)]
    if not steps:
        left, then = "It had no checkpoint, so nothing was saved.", "it starts from the beginning"
    else:
        left = f"Its last checkpoint is that of step {steps[-1]}; what came after it is lost."
        then = f"it continues from step {steps[-1]}"
    return f"{who}: {why}. {left}", f"Resume it; {then}."
