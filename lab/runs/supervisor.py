"""`python -m lab.runs.supervisor`: starts queued runs, one process for each LAB_HOME.

Started on demand by pages and command line, ends when there is nothing to do, outlives both. It
owns nothing that a run needs: killed at any moment, the next one finds all it has to know in the
run directories. What it cannot start yet, and why, it writes to `LAB_HOME/queue/state.json`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time
from typing import Any

from lab import host, paths, process
from lab.atomic_files import read_object, write_json
from lab.checked_run import read_forecast
from lab.errors import LabError
from lab.hub import credentials
from lab.paths import RunDir
from lab.runs import chat_memory, index, ladder, queue, supervisor_start, warm_worker
from lab.runs.escalation import Escalation
from lab.runs.hub_access import AccessReceiver
from lab.runs.result import Result, write_result
from lab.runs.status import status
from lab.runs.warm_worker import WarmWorker, spawn_worker

TICK_S = 0.4
IDLE_S = 30.0
RESERVE_BYTES = 300_000_000
RETURN_S = 10.0  # after a kill, until memory that is still held is reported


class Supervisor:
    """The loop, one `tick` at a time."""

    def __init__(self, access: AccessReceiver | None = None) -> None:
        self.access = access  # what workers are told of the Hub
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.seen_active: set[str] = set()
        self.escalation = Escalation()
        self.killed: dict[str, tuple[dict[str, Any], float]] = {}  # until their memory is back
        self.unreleased: dict[str, str] = {}
        self.spare = WarmWorker()

    def tick(self) -> bool:
        """Do what is due; False if there was nothing to do and nothing to wait for."""
        self._reap()
        running = queue.active()
        for run in running:
            record = self.escalation.look(run)
            if record is not None:
                self.killed[run.id] = (record, time.monotonic())
        self.escalation.complete()
        self._after_failures({run.id for run in running})
        line = queue.waiting_runs()
        rules = queue.settings()
        why: dict[str, str] = {}
        for run in line:
            if ladder.is_waiting(run):
                why[run.id] = ladder.WAITING
                continue  # its probes may stand behind it
            reason = self._reason_to_wait(run, running, rules)
            if reason:
                why[run.id] = reason
                break  # strict order: later runs wait too
            if queue.claim(run) and ladder.settle(run):
                self._start(run, room_for_a_run(running)[0])
            running = queue.active()
        self._confirm_ends()
        self._write_state(why, line)
        is_wanted = warm_worker.is_wanted()
        # beside a run on a processor its imports would only slow that run down
        if is_wanted and (not running or host.gpus()):
            self.spare.start(room_for_a_run(running)[0])
        elif not is_wanted:
            self.spare.stop()
        return bool(running or (line and not rules.paused) or is_wanted or self.killed)

    def _reason_to_wait(
        self, run: RunDir, running: list[RunDir], rules: queue.QueueSettings
    ) -> str:
        """Why this run cannot start now, in words; empty if it can."""
        if rules.paused:
            return "The queue is paused."
        if len(running) >= rules.at_once:
            return f"Waiting for {index.entry(running[-1]).name or running[-1].id} to end."
        needed = _predicted(run) + RESERVE_BYTES
        gpu, free = room_for_a_run(running)
        if needed <= free:
            return ""
        chat_bytes = chat_memory.held_bytes(on_gpu=gpu is not None)
        if not running and not 0 < needed - free <= chat_bytes:
            return ""  # nobody here can make room: the prediction was looked at when it was checked
        amounts = (
            f"needs about {(needed - RESERVE_BYTES) / 1e9:.1f} GB, {max(free, 0) / 1e9:.1f} GB free"
        )
        chat = f", and {chat_memory.HOLDS} {chat_bytes / 1e9:.1f} GB" if chat_bytes else ""
        return f"Waiting for memory: {amounts}{chat}."

    def _start(self, run: RunDir, gpu: str | None) -> None:
        print(f"starting {run.id}", flush=True)
        try:
            access = self.access.line_for(run) if self.access else None
            worker = self.spare.assign(run, gpu, access) or spawn_worker(run, gpu, access)
            self.children[run.id] = worker
        except (LabError, OSError) as error:
            message = f"The worker could not be started: {error}"
            hint = "Fix the cause, then resume."
            write_result(run, Result("failed", message, hint, ended=time.time()))

    def _reap(self) -> None:
        for run_id, child in list(self.children.items()):
            if child.poll() is not None:
                del self.children[run_id]
                if self.access:
                    self.access.forget(run_id)

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

    def _confirm_ends(self) -> None:
        """Look whether what a killed worker held has come back; say so if it has not."""
        for run_id, (record, since) in list(self.killed.items()):
            left = process.group_members(int(record["pid"]))
            used_bytes = host.gpu_bytes_of([int(record["pid"]), *left])
            if not left and not used_bytes:
                print(f"{run_id} is gone, and its memory is back", flush=True)
                del self.killed[run_id]
                self.unreleased.pop(run_id, None)
            elif time.monotonic() - since > RETURN_S:
                self.unreleased[run_id] = (
                    f"{run_id} was killed, but of its processes {len(left)} did not end, and "
                    f"{used_bytes / 1e9:.1f} GB of GPU memory are not released. A driver that "
                    "hangs keeps them: restart the machine if they stay."
                )

    def _write_state(self, why: dict[str, str], line: list[RunDir]) -> None:
        state: dict[str, Any] = {"waiting": {run.id: why.get(run.id, "") for run in line}}
        if self.unreleased:
            state["left"] = list(self.unreleased.values())
        file = queue.folder() / "state.json"
        if read_object(file) != state:
            paths.make_folder(file.parent)
            write_json(file, state, durable=False)


def _predicted(run: RunDir) -> float:
    return float(read_forecast(run).memory.peak_bytes)


def room_for_a_run(running: list[RunDir]) -> tuple[str | None, float]:
    """(UUID of the GPU with most room for a new run, bytes that the new run can take there).

    Without a GPU (None, this machine's memory). What the running ones were predicted to take and
    have not taken yet is not free.
    """
    gpus = host.gpus()
    if not gpus:
        import psutil

        available = float(psutil.virtual_memory().available)
        return None, available - sum(_unallocated_bytes(run, on_gpu=False) for run in running)
    rooms = {gpu.uuid: float(gpu.free_bytes) for gpu in gpus}
    for run in running:
        used = (read_object(run.process) or {}).get("gpu")
        if used in rooms:  # else it is on a device that is not ours to give
            rooms[used] -= _unallocated_bytes(run, on_gpu=True)
    roomiest = max(rooms, key=lambda uuid: rooms[uuid])
    return roomiest, rooms[roomiest]


def _unallocated_bytes(run: RunDir, *, on_gpu: bool) -> float:
    """What a running worker has not taken yet of its predicted peak."""
    pid = (read_object(run.process) or {}).get("pid")
    if on_gpu:
        taken = host.gpu_bytes_of([int(pid)]) if isinstance(pid, int) else 0
        return max(0.0, _predicted(run) - taken)
    return max(0.0, _predicted(run) - chat_memory.resident_bytes(pid))


def main() -> int:
    credentials.receive()
    paths.make_folder(queue.folder())
    with (queue.folder() / "lock").open("w") as lock:
        if not _locked(lock):
            return 0  # another one is at it
        write_json(supervisor_start.record_file(), process.identity(os.getpid()))
        queue.recover()
        loop = Supervisor(AccessReceiver())
        last_busy = time.monotonic()
        while True:
            if loop.tick():
                last_busy = time.monotonic()
            elif time.monotonic() - last_busy > IDLE_S:
                # Gone from the record first, then a last look: whoever submits after that look
                # finds no record and starts another supervisor.
                supervisor_start.record_file().unlink(missing_ok=True)
                if not queue.waiting_runs() or queue.settings().paused:
                    return 0
                write_json(supervisor_start.record_file(), process.identity(os.getpid()))
            time.sleep(TICK_S)


def _locked(lock: Any) -> bool:
    """Take the lock, waiting two seconds for one that is just ending."""
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if supervisor_start.is_running():
                return False
            time.sleep(0.1)
    return False


if __name__ == "__main__":
    raise SystemExit(main())
