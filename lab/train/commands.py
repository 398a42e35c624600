"""What a person asks of the worker: files in `commands/`, or a SIGTERM.

Between steps the worker looks by itself. In the middle of something long (imports, loading,
tokenising, compiling, one step) it does not look; then the sampler thread does, once a second, and
interrupts the main thread by a signal, if the command ends the attempt with nothing to save.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from lab.errors import Cancelled
from lab.paths import RunDir

COMMANDS = ("cancel", "stop", "save")
AGAIN_S = 10.0  # an exception is lost if it is raised where Python ignores it: raise it again
BEFORE_TRAINING = frozenset({"cancel", "stop"})
WHILE_TRAINING = frozenset({"cancel"})
NEVER: frozenset[str] = frozenset()


class Commands:
    """The commands to one attempt. `interrupting` are those that end it wherever it is."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.stop_signal = False
        self.interrupting = NEVER
        self._raised_at: float | None = None
        self._stop_seen: float | None = None

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Within, SIGTERM means stop, and the main thread can be interrupted."""
        before = {
            signum: signal.signal(signum, answer)
            for signum, answer in (
                (signal.SIGTERM, self._on_term),
                (signal.SIGUSR1, self._on_interrupt),
            )
        }
        try:
            yield
        finally:
            self.interrupting = NEVER
            for signum, answer in before.items():
                signal.signal(signum, answer)

    def look(self) -> str | None:
        """The most urgent command, or None."""
        for name in COMMANDS:
            if (self.run.commands / name).exists():
                return name
        return "stop" if self.stop_signal else None

    def take(self) -> str | None:
        """As `look`; a `save` is answered once and its file removed."""
        command = self.look()
        if command == "save":
            (self.run.commands / "save").unlink(missing_ok=True)
        return command

    def stop_waits(self) -> float:
        """Seconds since the worker first saw that it should stop; 0 if it should not."""
        if self.look() != "stop":
            return 0.0
        if self._stop_seen is None:
            self._stop_seen = time.monotonic()
        return time.monotonic() - self._stop_seen

    def interrupt(self) -> None:
        """Called by the sampler thread: interrupt the main thread if a command demands it."""
        main = threading.main_thread().ident
        if self.interrupting and self.look() in self.interrupting and main is not None:
            signal.pthread_kill(main, signal.SIGUSR1)

    def _on_term(self, *_: Any) -> None:
        self.stop_signal = True

    def _on_interrupt(self, *_: Any) -> None:
        command, now = self.look(), time.monotonic()
        if command is None or command not in self.interrupting:
            return
        if self._raised_at is None or now - self._raised_at > AGAIN_S:
            self._raised_at = now
            raise Cancelled(command)
