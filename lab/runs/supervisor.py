"""`python -m lab.runs.supervisor`: starts queued runs, one process for each LAB_HOME.

Started on demand by pages and command line, ends when there is nothing to do, outlives both. It
owns nothing that a run needs: killed at any moment, the next one finds all it has to know in the
run directories. What it cannot start yet, and why, it writes to `LAB_HOME/queue/state.json`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from lab import machine, paths
from lab.errors import LabError
from lab.files import number, read_object, write_json
from lab.paths import RunDir
from lab.runs import launch, process, queue, spare
from lab.runs.spare import Spare
from lab.runs.status import status

TICK_S = 0.4
IDLE_S = 30.0
RESERVE_BYTES = 300_000_000
RETURN_S = 10.0  # after a kill, until memory that is still held is reported
# Seconds after which a worker that does not answer gets SIGTERM, then SIGKILL.
GRACE_S = {"stop": (60.0, 180.0), "cancel": (15.0, 30.0)}


def record_file() -> Path:
    return queue.folder() / "process.json"


def is_running() -> bool:
    return process.is_alive(read_object(record_file()))


def ensure() -> None:
    """Start the supervisor if none runs. Two at once: one gets the lock, the other ends."""
    if is_running():
        return
    queue.folder().mkdir(parents=True, exist_ok=True)
    process.spawn(["lab.runs.supervisor"], queue.folder() / "log.txt")


def nudge() -> None:
    """Called by whoever looks: if runs wait and nobody starts them, start a supervisor."""
    if not is_running() and queue.waiting() and not queue.settings().paused:
        ensure()


class Supervisor:
    """The loop, one `tick` at a time."""

    def __init__(self) -> None:
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.seen_active: set[str] = set()
        self.signalled: dict[tuple[int, str], int] = {}  # by the worker's pid and the command
        self.killed: dict[str, tuple[dict[str, Any], float]] = {}  # until their memory is back
        self.left: dict[str, str] = {}
        self.spare = Spare()

    def tick(self) -> bool:
        """Do what is due; False if there was nothing to do and nothing to wait for."""
        self._reap()
        running = queue.active()
        for run in running:
            self._escalate(run)
        self._after_failures({run.id for run in running})
        line = queue.waiting()
        rules = queue.settings()
        why: dict[str, str] = {}
        for run in line:
            reason = self._obstacle(run, running, rules)
            if reason:
                why[run.id] = reason
                break  # nobody overtakes
            if queue.claim(run):
                self._start(run)
            running = queue.active()
        self._confirm_ends()
        self._say(why, line)
        is_wanted = spare.is_wanted()
        # beside a run on a processor its imports would only slow that run down
        if is_wanted and (not running or machine.gpus()):
            self.spare.keep()
        elif not is_wanted:
            self.spare.drop()
        return bool(running or (line and not rules.paused) or is_wanted or self.killed)

    def _obstacle(self, run: RunDir, running: list[RunDir], rules: queue.Settings) -> str:
        """Why this run cannot start now, in words; empty if it can."""
        if rules.paused:
            return "The queue is paused."
        if len(running) >= rules.at_once:
            return f"Waiting for {running[-1].id} to end."
        needed = _predicted(run)
        free = _free_bytes() - sum(_still_to_come(other) for other in running)
        if running and needed + RESERVE_BYTES > free:
            return (
                f"Waiting for memory: about {needed / 1e9:.1f} GB are needed, "
                f"{max(free, 0) / 1e9:.1f} GB are free."
            )
        return ""

    def _start(self, run: RunDir) -> None:
        print(f"starting {run.id}", flush=True)
        try:
            self.children[run.id] = self.spare.give(run) or launch.launch(run)
        except (LabError, OSError) as error:
            write_json(
                run.result,
                {
                    "v": 1,
                    "state": "failed",
                    "message": f"The worker could not be started: {error}",
                    "hint": "Resume it once the cause is gone.",
                    "ended": time.time(),
                },
            )

    def _reap(self) -> None:
        for run_id, child in list(self.children.items()):
            if child.poll() is not None:
                del self.children[run_id]

    def _after_failures(self, active: set[str]) -> None:
        """Pause the queue after a failure, where a person wants that."""
        ended, self.seen_active = self.seen_active - active, active
        if queue.settings().continue_after_failure:
            return
        for run_id in ended:
            with contextlib.suppress(LabError):
                if status(paths.run_dir(run_id)).state in ("failed", "crashed"):
                    print(f"{run_id} failed: pausing the queue", flush=True)
                    queue.change(paused=True)

    def _escalate(self, run: RunDir) -> None:
        """TERM, then KILL, for a worker that does not answer to stop or cancel."""
        for name, (term_s, kill_s) in GRACE_S.items():
            try:
                age = time.time() - (run.commands / name).stat().st_mtime
            except OSError:
                continue
            due = signal.SIGKILL if age > kill_s else signal.SIGTERM if age > term_s else None
            record = read_object(run.process) or {}
            worker = (int(number(record.get("pid")) or 0), name)
            if due is None or self.signalled.get(worker) == due:
                continue
            self.signalled[worker] = due
            print(f"{run.id} has not answered {name} for {age:.0f} s: {due.name}", flush=True)
            if process.send_group(record, due) and due == signal.SIGKILL:
                self.killed[run.id] = (record, time.monotonic())

    def _confirm_ends(self) -> None:
        """Look whether what a killed worker held has come back; say so if it has not."""
        for run_id, (record, since) in list(self.killed.items()):
            left = process.group_members(int(record["pid"]))
            held = machine.gpu_bytes_of([int(record["pid"]), *left])
            if not left and not held:
                print(f"{run_id} is gone, and its memory is back", flush=True)
                del self.killed[run_id]
                self.left.pop(run_id, None)
            elif time.monotonic() - since > RETURN_S:
                self.left[run_id] = (
                    f"{run_id} was killed, but {len(left)} of its processes live and "
                    f"{held / 1e9:.1f} GB of GPU memory are not back. A driver that hangs keeps "
                    "them: restart the machine if they stay."
                )

    def _say(self, why: dict[str, str], line: list[RunDir]) -> None:
        state: dict[str, Any] = {"waiting": {run.id: why.get(run.id, "") for run in line}}
        if self.left:
            state["left"] = list(self.left.values())
        file = queue.folder() / "state.json"
        if read_object(file) != state:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, state, durable=False)


def _predicted(run: RunDir) -> float:
    return float(number((read_object(run.estimate) or {}).get("peak_bytes")) or 0.0)


def _still_to_come(run: RunDir) -> float:
    """What a running worker has not taken yet of its predicted peak (on a CPU)."""
    pid = (read_object(run.process) or {}).get("pid")
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        resident = 0
    return max(0.0, _predicted(run) - resident)


def _free_bytes() -> float:
    """Memory that a new run could take: the GPU's, or this machine's."""
    gpus = machine.gpus()
    if gpus:
        return float(gpus[0]["free_bytes"])
    import psutil

    return float(psutil.virtual_memory().available)


def main() -> int:
    queue.folder().mkdir(parents=True, exist_ok=True)
    with (queue.folder() / "lock").open("w") as lock:
        if not _locked(lock):
            return 0  # another one is at it
        write_json(record_file(), process.identity(os.getpid()))
        queue.recover()
        loop = Supervisor()
        last_busy = time.monotonic()
        while True:
            if loop.tick():
                last_busy = time.monotonic()
            elif time.monotonic() - last_busy > IDLE_S:
                # Gone from the record first, then a last look: whoever submits after that look
                # finds no record and starts another supervisor.
                record_file().unlink(missing_ok=True)
                if not queue.waiting() or queue.settings().paused:
                    return 0
                write_json(record_file(), process.identity(os.getpid()))
            time.sleep(TICK_S)


def _locked(lock: Any) -> bool:
    """Take the lock, waiting two seconds for one that is just ending."""
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if is_running():
                return False
            time.sleep(0.1)
    return False


if __name__ == "__main__":
    raise SystemExit(main())
