"""A warm worker with its libraries already imported, so that a run starts at once.

It belongs to the supervisor: it waits on a pipe from it, and ends when that closes. It costs the
memory of its libraries (about half a gigabyte, none on a GPU); `queue.Settings.spare` says no.
"""

from __future__ import annotations

import contextlib
import subprocess
import time

from lab import process
from lab.atomic_files import read_object
from lab.paths import RunDir
from lab.runs import queue

WANTED_S = 600.0


def is_wanted() -> bool:
    wanted_at = (read_object(queue.folder() / "wanted") or {}).get("time")
    if not isinstance(wanted_at, (int, float)):
        return False
    return 0 <= time.time() - wanted_at < WANTED_S and queue.settings().spare


def spawn_worker(
    run: RunDir, gpu: str | None = None, access: bytes | None = None
) -> subprocess.Popen[bytes]:
    """Start the worker in a session of its own, with its output in a file, and write it down.

    `gpu` is the UUID of the one that it may use, `access` what it is told of the Hub. Called by the
    supervisor only; everybody else submits to the queue.
    """
    worker = process.spawn(["lab.train", str(run.path)], run.log, gpu=gpu, access=access)
    process.register(run, worker.pid, gpu)
    return worker


class WarmWorker:
    """The supervisor's side of it."""

    def __init__(self) -> None:
        self.worker: subprocess.Popen[bytes] | None = None
        self.gpu: str | None = None  # a library may initialise CUDA, so it is settled at the start

    def start(self, gpu: str | None = None) -> None:
        """Have one ready, or on its way to be, that sees the one device `gpu` (a UUID)."""
        if self.worker is not None and self.worker.poll() is None:
            return
        self.gpu = gpu
        self.worker = process.spawn(
            ["lab.train", "--spare"], queue.folder() / "spare.txt", stdin=subprocess.PIPE, gpu=gpu
        )

    def stop(self) -> None:
        """Let it end."""
        worker, self.worker = self.worker, None
        if worker is not None and worker.stdin is not None:
            with contextlib.suppress(OSError):
                worker.stdin.close()

    def assign(
        self, run: RunDir, gpu: str | None = None, access: bytes | None = None
    ) -> subprocess.Popen[bytes] | None:
        """The worker, sent to `run` and written down as its own, with what it is told of the Hub;
        None if there is none alive, or it sees another device than `gpu`."""
        if gpu != self.gpu:
            self.stop()
        worker, self.worker = self.worker, None
        if worker is None or worker.stdin is None or worker.poll() is not None:
            return None
        try:
            process.register(run, worker.pid, gpu)
            worker.stdin.write(f"{run.path}\n".encode() + (access or b""))
            worker.stdin.close()
        except OSError:  # it died meanwhile, and has not touched the run
            run.process.unlink(missing_ok=True)
            return None
        return worker
