"""How a token for the Hub, and the network of whoever submits a run, get to its worker.

The supervisor listens on a socket in LAB_HOME/queue, which is closed to other accounts, and keeps
what it is sent in memory, by run. It hands it to the worker through a pipe. No file holds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import paths
from lab.atomic_files import read_object
from lab.data import catalog
from lab.errors import LabError
from lab.hub import credentials, repository
from lab.paths import RunDir

NAME = "socket"
MAX_MESSAGE_BYTES = 100_000  # of a message
ANSWER_S = 15.0  # for a supervisor that is just starting


def is_needed(run: RunDir) -> bool:
    """Whether the run reads from the Hub, and there is anything to tell its worker of it."""
    spec = read_object(run.spec) or {}
    reads_hub = repository.is_id(str(spec.get("model"))) or bool(catalog.hub_datasets(spec))
    return reads_hub and credentials.access_line() is not None


def hand_over(run: RunDir) -> None:
    """Give the supervisor what this process knows of the Hub, for `run`. Raises LabError if no
    supervisor takes it within ANSWER_S."""
    line = credentials.access_line()
    if line is None:
        return
    message = json.dumps({"run": run.id, "access": line.decode()}).encode() + b"\n"
    end = time.monotonic() + ANSWER_S
    while True:
        with contextlib.suppress(OSError), _address() as address:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(ANSWER_S)
                connection.connect(address)
                connection.sendall(message)
                if connection.recv(3) == b"ok\n":
                    return
        if time.monotonic() > end:
            raise LabError(
                "The token for the Hub could not be handed to the supervisor of the queue.",
                f"See {_folder() / 'log.txt'}, then start or resume {run.id}.",
            )
        time.sleep(0.05)


class AccessReceiver:
    """The supervisor's side: what it was sent, by run, until the worker has it."""

    def __init__(self) -> None:
        self._lines: dict[str, bytes] = {}
        self._lock = threading.Lock()
        paths.make_folder(_folder())
        (_folder() / NAME).unlink(missing_ok=True)  # of a supervisor that is gone
        self._listener = socket.socket(socket.AF_UNIX)
        with _address() as address:
            self._listener.bind(address)
        self._listener.listen()
        threading.Thread(target=self._serve, name="hub access", daemon=True).start()

    def line_for(self, run: RunDir) -> bytes | None:
        """What the worker of `run` is told; without a word of its own, what this process knows."""
        with self._lock:
            line = self._lines.get(run.id)
        return line or credentials.access_line()

    def forget(self, run_id: str) -> None:
        with self._lock:
            self._lines.pop(run_id, None)

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            # whatever comes, the next message is heard
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError), connection:
                connection.settimeout(ANSWER_S)
                value: Any = json.loads(_line(connection))
                with self._lock:
                    self._lines[str(value["run"])] = str(value["access"]).encode()
                connection.sendall(b"ok\n")


def _line(connection: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n") and len(received) < MAX_MESSAGE_BYTES:
        block = connection.recv(65_536)
        if not block:
            break
        received += block
    return bytes(received)


def _folder() -> Path:
    return paths.home() / "queue"


@contextlib.contextmanager
def _address() -> Iterator[str]:
    """The socket's path, short however deep LAB_HOME lies: addresses have 107 bytes."""
    handle = os.open(_folder(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{NAME}"
    finally:
        os.close(handle)
