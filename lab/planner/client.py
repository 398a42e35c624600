"""Ask the planner process. It is started at the first question and kept for the next ones."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from typing import Any

from lab import paths
from lab.errors import LabError, Problem, SpecError
from lab.paths import ROOT

TIMEOUT_S = 300.0


class Planner:
    """One planner process; questions wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def check(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The resolved spec, facts and estimate. Raises SpecError with all problems."""
        answer = self.ask({"ask": "check", "spec": spec})
        if answer["problems"]:
            raise SpecError([Problem(**problem) for problem in answer["problems"]])
        return answer

    def fixes(self, spec: dict[str, Any]) -> list[dict[str, Any]]:
        """What makes a resolved spec smaller, the largest predicted saving first."""
        found: list[dict[str, Any]] = self.ask({"ask": "fixes", "spec": spec})["fixes"]
        return found

    def estimate(
        self, spec: dict[str, Any], device: dict[str, Any] | None = None, **how: Any
    ) -> dict[str, Any]:
        """The memory of a run that need not be possible here (`lab.planner.estimate`).

        Raises SpecError with all problems.
        """
        answer = self.ask({"ask": "estimate", "spec": spec, "device": device, "how": how})
        if "problems" in answer:
            raise SpecError([Problem(**problem) for problem in answer["problems"]])
        return answer

    def limits(self, spec: dict[str, Any], device: dict[str, Any]) -> dict[str, Any]:
        """The longest row, the largest batch and the largest shipped model that fit a device.

        Raises SpecError with all problems.
        """
        answer = self.ask({"ask": "limits", "spec": spec, "device": device})
        if "problems" in answer:
            raise SpecError([Problem(**problem) for problem in answer["problems"]])
        return answer

    def plan(self, spec: dict[str, Any], device: dict[str, Any] | None = None) -> dict[str, Any]:
        """The fastest settings of `spec` that fit, and the runners-up (`lab.planner.estimate`).

        Raises SpecError with all problems.
        """
        answer = self.ask({"ask": "plan", "spec": spec, "device": device})
        if "problems" in answer:
            raise SpecError([Problem(**problem) for problem in answer["problems"]])
        return answer

    def look(self, spec: dict[str, Any], most: int) -> dict[str, Any]:
        """What the first `most` rows of the spec's data look like to its model."""
        return self.ask({"ask": "look", "spec": spec, "most": most})

    def warm(self) -> None:
        """Have the process import what it needs, before the first question."""
        self.ask({"ask": "warm"})

    def ask(self, request: dict[str, Any], timeout: float = TIMEOUT_S) -> dict[str, Any]:
        """The answer to one request. Raises LabError, or RuntimeError for a bug over there."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            # the folders may change between calls, and paths are relative to the asker
            where = {
                "LAB_HOME": str(paths.home()),
                "LAB_MODELS": str(paths.models()),
                "PWD": os.getcwd(),
            }
            try:
                process.stdin.write(json.dumps(request | {"where": where}) + "\n")
                process.stdin.flush()
                reply = json.loads(self._answers.get(timeout=timeout))
            except (OSError, queue.Empty, ValueError) as error:
                self._end()
                raise LabError(
                    f"The planner did not answer ({type(error).__name__}).",
                    "Try again; if it repeats, `python -m lab doctor` says what is missing.",
                ) from None
        if "error" in reply:
            raise LabError(reply["error"], reply.get("hint", ""))
        if "bug" in reply:
            raise RuntimeError(f"planner: {reply['bug']}\n{self._stderr()}")
        answer: dict[str, Any] = reply["ok"]
        return answer

    def close(self) -> None:
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._errors = tempfile.TemporaryFile()
        self._answers = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lab.planner"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        )
        # The pipe is always drained, so that the planner can never hang on it.
        threading.Thread(
            target=self._drain, args=(self._process, self._answers), daemon=True
        ).start()
        atexit.register(self.close)
        return self._process

    @staticmethod
    def _drain(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answers.put(line)
        answers.put("")  # ended: whoever waits is told at once

    def _stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-4000:]

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        # It has answered all that it was asked, and keeps nothing: half a second of taking its
        # libraries down would be waited for in vain.
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


planner = Planner()
