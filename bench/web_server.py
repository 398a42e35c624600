"""A web server of one's own for a measurement: started, asked, killed."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from lab import paths
from lab.errors import LabError


class Web:
    """`streamlit run app.py` on a free loopback port, its output in a file."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.token = secrets.token_hex(16)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(self.port)],
                cwd=paths.ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ
                | {"LAB_HOME": str(paths.home()), "LAB_MODELS": str(paths.models())}
                | {"LAB_TOKEN": self.token},
            )

    def answers(self) -> bool:
        health = urllib.request.Request(
            f"{self.url}/_stcore/health", headers={"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(health, timeout=1):
                return True
        except OSError:
            return False

    def wait(self, seconds: float = 60.0) -> float:
        """Seconds until it answered. Raises LabError with the end of its log."""
        began = time.monotonic()
        while not self.answers():
            if time.monotonic() - began > seconds:
                raise LabError("The web server does not answer.", self.log.read_text()[-2000:])
            time.sleep(0.02)
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL, as a crash would end it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
