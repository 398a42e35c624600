"""The planner's processes: each request runs in one that others do not wait for, under limits.

One thread, which imports and never computes: processes are forked from it in a few milliseconds,
with all libraries in memory. It passes lines on, watches time and memory, and ends what takes too
much.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from lab import stages
from lab.preflight import worker

AT_ONCE = 4  # requests
WAITING_FOR_HUB = 12  # requests beside those: they compute nothing, and nobody waits for them
READING_AT_ONCE = 3  # of them, those that read files: the others never wait for these alone
IDLE = 2  # processes that are kept for what they have learned
GROWN_BYTES = 500_000_000  # an idle process that has grown by more is ended
MAX_REPLY_BYTES = 256_000_000
LOOK_S = 0.03  # between looks at time and memory


@dataclass
class Job:
    """A request that waits or runs."""

    id: int
    request: str
    reads: bool
    seconds: float
    part_seconds: float
    memory_bytes: int
    ends: float = 0.0
    stage: str = "request"
    stage_ends: float = 0.0

    def enter(self, stage: str) -> None:
        self.stage = stage
        self.stage_ends = time.monotonic() + self.part_seconds

    def overdue(self) -> float | None:
        """The seconds that the job had, if they are over."""
        now = time.monotonic()
        if now > self.ends:
            return self.seconds
        if self.stage in stages.SHORT and now > self.stage_ends:
            return self.part_seconds
        return None


@dataclass(eq=False)
class Process:
    pid: int
    requests: int  # file descriptors of its pipes
    replies: int
    reads: bool
    bytes_at_start: int = 0
    job: Job | None = None
    received: bytearray = field(default_factory=bytearray)

    @property
    def waits_for_hub(self) -> bool:
        return self.job is not None and self.job.stage == "hub"

    def grown(self) -> int:
        """Bytes of memory that it has beyond what it was forked with."""
        return max(0, memory_of(self.pid) - self.bytes_at_start)


class Pool:
    """Runs jobs in processes; `send` takes each reply, a line for whoever sent the request."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._processes: list[Process] = []
        self._waiting: list[Job] = []
        self._ended: list[int] = []  # killed, not yet reaped
        self._selector = selectors.DefaultSelector()
        self._memory_bytes = psutil.virtual_memory().total

    def run(self, source: int) -> None:
        """Do what the lines of the pipe `source` say until it ends; then end all processes."""
        os.set_blocking(source, False)
        self._selector.register(source, selectors.EVENT_READ)
        received = bytearray()
        try:
            while True:
                is_busy = self._ended or any(process.job for process in self._processes)
                for event, _ in self._selector.select(LOOK_S if is_busy else None):
                    if event.fd != source:
                        self._hear(event.data)
                        continue
                    data = os.read(source, 1 << 20)
                    if not data:
                        return
                    *lines, rest = (received + data).split(b"\n")
                    received = bytearray(rest)
                    for line in lines:
                        self._take(json.loads(line))
                self._watch()
                self._assign()
        finally:
            for process in list(self._processes):
                self._end(process)

    def _take(self, message: dict[str, Any]) -> None:
        if "cancel" not in message:
            self._waiting.append(Job(**message))
            return
        self._waiting = [job for job in self._waiting if job.id != message["cancel"]]
        for process in self._processes:
            if process.job is not None and process.job.id == message["cancel"]:
                self._end(process)
                return

    def _assign(self) -> None:
        for job in list(self._waiting):
            at_work = [process for process in self._processes if process.job is not None]
            busy = [process for process in at_work if not process.waits_for_hub]
            if len(busy) >= AT_ONCE or len(at_work) >= AT_ONCE + WAITING_FOR_HUB:
                return
            if job.reads and sum(process.reads for process in busy) >= READING_AT_ONCE:
                continue
            idle = [
                process
                for process in self._processes
                if process.job is None and process.reads == job.reads
            ]
            self._waiting.remove(job)
            try:
                process = idle[0] if idle else self._fork(job.reads)
            except OSError as error:
                hint = "Close some programs, or wait for other requests, then try again."
                self._say(job, f"The planner cannot start a process: {error.strerror}.", hint)
                continue
            job.ends = time.monotonic() + job.seconds
            process.job = job
            line = json.dumps({"id": job.id, "request": job.request}).encode() + b"\n"
            with contextlib.suppress(BrokenPipeError):  # its end is noticed by its other pipe
                _write(process.requests, line)

    def _fork(self, reads: bool) -> Process:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                worker.prepare(parent)
                for other in self._processes:
                    os.close(other.requests)
                    os.close(other.replies)
                for handle in (ours_in, ours_out):
                    os.close(handle)
                self._selector.close()
                with open(os.devnull, "rb") as nothing:
                    os.dup2(nothing.fileno(), 0)  # else the pool would not see its own input end
                worker.serve(os.fdopen(theirs_in, "rb"), os.fdopen(theirs_out, "wb"))
            finally:
                os._exit(0)
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(ours_in, False)
        process = Process(pid, ours_out, ours_in, reads, bytes_at_start=memory_of(pid))
        self._processes.append(process)
        self._selector.register(ours_in, selectors.EVENT_READ, process)
        return process

    def _hear(self, process: Process) -> None:
        """Take what a process says: the part that it has come to, its reply, or its end."""
        if process not in self._processes:
            return  # ended in this very round
        data = os.read(process.replies, 1 << 20)
        if not data:
            self._lost(process)
            return
        process.received += data
        if b"\n" not in data:
            if len(process.received) > MAX_REPLY_BYTES:
                self._refuse(process, "The answer is too long to be shown.", "Ask for less.")
            return
        *lines, rest = process.received.split(b"\n")
        process.received = rest
        for line in lines:
            job = process.job
            if line[:1] == worker.STAGE and job is not None:
                job.enter(line[1:].decode())
            elif line[:1] == worker.REPLY:
                process.job = None
                self._send(bytes(line[1:]))
                self._keep_or_end(process)

    def _keep_or_end(self, process: Process) -> None:
        """Keep an idle process, unless it has grown or there are enough of them."""
        idle = [other for other in self._processes if other.job is None]
        alike = [other for other in idle if other.reads == process.reads]
        if process.grown() > GROWN_BYTES or len(idle) > IDLE or len(alike) > 1:
            self._end(process)

    def _watch(self) -> None:
        """End what is over its time or memory; reap what has ended."""
        for process in list(self._processes):
            job = process.job
            if job is None:
                continue
            seconds = job.overdue()
            if seconds is not None:
                self._refuse(process, *stages.too_long(job.stage, seconds))
            elif process.grown() > job.memory_bytes:
                self._refuse(process, *stages.too_much(job.stage, job.memory_bytes))
        self._share_memory()
        self._ended = [pid for pid in self._ended if os.waitpid(pid, os.WNOHANG) == (0, 0)]

    def _share_memory(self) -> None:
        """All requests together take half of the machine's memory at most: the largest gives."""
        busy = [
            (process.grown(), process) for process in self._processes if process.job is not None
        ]
        if sum(size for size, _ in busy) > self._memory_bytes // 2:
            size, largest = max(busy, key=lambda pair: pair[0])
            assert largest.job is not None
            self._refuse(largest, *stages.too_much(largest.job.stage, size))

    def _lost(self, process: Process) -> None:
        """A process has ended by itself, or was ended from outside."""
        job = process.job
        self._end(process, reap=False)
        _, status = os.waitpid(process.pid, 0)
        if job is None:
            return
        how = f"exit code {os.waitstatus_to_exitcode(status)}"
        if os.WIFSIGNALED(status):
            how = signal.Signals(os.WTERMSIG(status)).name
        doing, hint = stages.STAGES.get(job.stage, stages.STAGES["request"])
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            hint = f"The machine may be out of memory. {hint}"
        self._say(job, f"The planner's process ended ({how}) while {doing}.", hint)

    def _refuse(self, process: Process, message: str, hint: str) -> None:
        job = process.job
        self._end(process)
        if job is not None:
            self._say(job, message, hint)

    def _say(self, job: Job, message: str, hint: str) -> None:
        reply = {"id": job.id, "error": message, "hint": hint}
        self._send(json.dumps(reply).encode())

    def _end(self, process: Process, *, reap: bool = True) -> None:
        self._processes.remove(process)
        self._selector.unregister(process.replies)
        os.close(process.requests)
        os.close(process.replies)
        if reap:
            os.kill(process.pid, signal.SIGKILL)
            self._ended.append(process.pid)


def memory_of(pid: int) -> int:
    """Bytes of a process's own memory, without files that it maps; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def _write(handle: int, data: bytes) -> None:
    """All of `data`; os.write may take less."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
