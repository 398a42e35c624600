"""Ask the planner. It is started at the first question and kept for the next ones."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import IO, Any

from lab import paths
from lab.checked_run import CheckedRun, CheckResult
from lab.data.preview_types import DatasetPreview
from lab.dataclass_json import read
from lab.errors import LabError, Problem, SpecError
from lab.fit_answers import FitLimits, Saving
from lab.forecasts import Forecast, SettingsSearch
from lab.hub import credentials, settings
from lab.paths import ROOT
from lab.stages import LONG, Limits

TIMEOUT_S = 900.0  # with the time that a request waits for others; each has limits of its own

# exit codes of a process that somebody has ended; Ctrl+C in a terminal reaches the planner, too
ENDING_SIGNALS = {-number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)}


class Abandoned(LabError):
    """Nobody wants the answer any more: the question was given up."""

    def __init__(self) -> None:
        super().__init__("The question was given up.", "Ask again.")


class PlannerEnded(LabError):
    """Somebody has ended the planner: the server that is shut down, a signal."""


class Asking:
    """What a page asks, for as long as it wants to know.

    `with asking.active():` around calls of the planner; `asking.cancel()` from any thread ends
    those that run, and every later one, with Abandoned. So does a question that is asked when
    `is_wanted` says that nobody waits for the answer any more.
    """

    _current: ContextVar[Asking | None] = ContextVar("asking", default=None)

    def __init__(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
        self._lock = threading.Lock()
        self._requests: set[Request] = set()
        self._is_wanted = is_wanted
        self.is_cancelled = False

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """What this thread asks inside belongs to it."""
        before = self._current.set(self)
        try:
            yield
        finally:
            self._current.reset(before)

    def cancel(self) -> None:
        with self._lock:
            self.is_cancelled = True
            requests = list(self._requests)
        for request in requests:
            request.cancel()

    def _add(self, request: Request) -> None:
        with self._lock:
            self.is_cancelled = self.is_cancelled or not self._is_wanted()
            if self.is_cancelled:
                raise Abandoned
            self._requests.add(request)

    def _remove(self, request: Request) -> None:
        with self._lock:
            self._requests.discard(request)


class Request:
    """One request under way."""

    def __init__(self, planner: Planner, request_id: int) -> None:
        self.id = request_id
        self._planner = planner
        self._reply: dict[str, Any] = {}
        self._is_answered = threading.Event()

    def answer(self, timeout: float = TIMEOUT_S) -> dict[str, Any]:
        """Waits for it. Raises LabError, Abandoned, or RuntimeError for a bug over there."""
        if not self._is_answered.wait(timeout):
            self.cancel()
            raise LabError(
                f"The planner did not answer within {timeout:g} s.",
                "Try again; if it repeats, 'python -m lab doctor' says what is missing.",
            )
        reply = self._reply
        if "cancelled" in reply:
            raise Abandoned
        if "error" in reply:
            kind = PlannerEnded if reply.get("was_ended") else LabError
            raise kind(reply["error"], reply.get("hint", ""))
        if "bug" in reply:
            raise RuntimeError(f"planner: {reply['bug']}\n{reply.get('traceback', '')}")
        answer: dict[str, Any] = reply["ok"]
        return answer

    def cancel(self) -> None:
        """Give it up: its process ends at once, and `answer` raises Abandoned."""
        self._planner._forget(self)
        self._settle({"cancelled": True})

    def _settle(self, reply: dict[str, Any]) -> None:
        if not self._is_answered.is_set():
            self._reply = reply
            self._is_answered.set()


class Planner:
    """The planner's processes. Questions do not wait for each other, and have `limits`."""

    def __init__(self, limits: Limits | None = None, module: str = "lab.preflight") -> None:
        self._module = module
        self.limits_of_requests = limits or Limits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: dict[int, Request] = {}  # those that wait for their reply
        self._ids = itertools.count(1)

    def check(self, spec: dict[str, Any]) -> CheckedRun:
        """The run that would start. Raises SpecError with all problems."""
        return CheckResult.from_json(self.ask({"ask": "check", "spec": spec})).checked()

    def fixes(self, spec: dict[str, Any]) -> list[Saving]:
        """What makes a resolved spec smaller, the largest predicted saving first."""
        savings = self.ask({"ask": "fixes", "spec": spec})["fixes"]
        return [read(Saving, saving) or Saving() for saving in savings]

    def estimate(
        self, spec: dict[str, Any], device: dict[str, Any] | None = None, **how: Any
    ) -> Forecast:
        """The forecast of a run that need not be possible here (`lab.preflight.answers`).

        Raises SpecError with all problems.
        """
        request = {"ask": "estimate", "spec": spec, "device": device, "how": how}
        return Forecast.from_json(self._ask_of(request)) or Forecast()

    def limits(self, spec: dict[str, Any], device: dict[str, Any]) -> FitLimits:
        """The longest row, the largest batch and the largest shipped model that fit a device.

        Raises SpecError with all problems.
        """
        answer = self._ask_of({"ask": "limits", "spec": spec, "device": device})
        return read(FitLimits, answer) or FitLimits()

    def plan(self, spec: dict[str, Any], device: dict[str, Any] | None = None) -> SettingsSearch:
        """The fastest settings of `spec` that fit, and the runners-up (`lab.preflight.answers`).

        Raises SpecError with all problems.
        """
        answer = self._ask_of({"ask": "plan", "spec": spec, "device": device})
        return SettingsSearch.from_json(answer)

    def look(self, spec: dict[str, Any], most: int, *, may_fetch: bool = False) -> DatasetPreview:
        """What the first `most` rows of the spec's data look like to its model, whose tokenizer
        may be fetched for it or not (`lab.data.dataset_preview.look`)."""
        request = {"ask": "look", "spec": spec, "most": most, "may_fetch": may_fetch}
        return DatasetPreview.from_json(self.ask(request))

    def warm(self) -> None:
        """Have the processes import what they need, before the first question. Whoever ends the
        planner meanwhile needs no warm one; what else goes wrong is raised."""
        requests = [self._begin({"ask": "warm"}, reads) for reads in (True, False)]
        with contextlib.suppress(PlannerEnded):
            for request in requests:
                request.answer()

    def _ask_of(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = self.ask(request)
        if "problems" in answer:
            raise SpecError([Problem(**problem) for problem in answer["problems"]])
        return answer

    def ask(self, request: dict[str, Any], timeout: float = TIMEOUT_S) -> dict[str, Any]:
        """The answer to one request. Raises LabError, or RuntimeError for a bug over there."""
        asking = Asking._current.get()
        begun = self.begin(request)
        if asking is None:
            return begun.answer(timeout)
        try:
            asking._add(begun)
            return begun.answer(timeout)
        except Abandoned:
            begun.cancel()
            raise
        finally:
            asking._remove(begun)

    def begin(self, request: dict[str, Any]) -> Request:
        """Send a request, and go on without its answer. Raises LabError if it cannot be sent."""
        return self._begin(request, _reads_files(request))

    def _begin(self, request: dict[str, Any], reads: bool) -> Request:
        # the folders may change between calls, and paths are relative to the asker
        where = {
            "LAB_HOME": str(paths.home()),
            "LAB_MODELS": str(paths.models()),
            "PWD": os.getcwd(),
        }
        token = credentials.current()
        context = {
            "where": where,
            "network": settings.passed_on(),
            "token": token.to_json() if token else None,
        }
        try:
            text = json.dumps(request | context)
        except (RecursionError, TypeError, ValueError) as error:
            raise LabError(
                f"The settings cannot be sent to the planner: {error}.",
                "Write plain JSON, nested less than a hundred times.",
            ) from None
        limits = self.limits_of_requests
        is_long = request["ask"] in ("plan", "fixes", "limits", "warm")
        is_long = is_long or bool((request.get("how") or {}).get("whole"))
        with self._lock:
            begun = Request(self, next(self._ids))
            message = {
                "id": begun.id,
                "request": text,
                "reads": reads,
                "seconds": limits.seconds * (LONG if is_long else 1),
                "part_seconds": limits.part_seconds,
                "memory_bytes": limits.memory_bytes,
            }
            self._running()
            self._requests[begun.id] = begun
            try:
                self._write(message)
            except OSError as error:
                del self._requests[begun.id]
                self._end()
                raise LabError(
                    f"The planner cannot be asked: {error}.", "Try again; it is restarted."
                ) from None
        return begun

    def close(self) -> None:
        """End all its processes; what waits for an answer is told."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        errors = tempfile.TemporaryFile()
        # NVML counts the GPUs: CUDA's own count would start CUDA, which does not survive a fork
        variables = {"TOKENIZERS_PARALLELISM": "false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=credentials.without_tokens(os.environ) | variables | settings.for_children(),
        )
        # The pipe is always drained, so that the planner can never hang on it.
        threading.Thread(target=self._drain, args=(self._process, errors), daemon=True).start()
        atexit.register(self.close)
        return self._process

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _drain(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        """Hand each reply to its request; one that nobody waits for is dropped."""
        assert process.stdout is not None
        for line in process.stdout:
            reply = _reply(line)
            request_id = reply.get("id")
            with self._lock:
                request = (
                    self._requests.pop(request_id, None) if isinstance(request_id, int) else None
                )
            if request is not None:
                request._settle(reply)
        with self._lock:
            if self._process is not process and self._process is not None:
                return  # another one has taken over, with the requests that there are
            requests, self._requests = self._requests, {}
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        # Ctrl+C while Python itself starts is no end by a signal
        was_ended = process.wait() in ENDING_SIGNALS or lines[-1:] == ["KeyboardInterrupt"]
        for request in requests.values():
            last = f" Its last words: {lines[-1][:300]}" if lines else ""
            hint = f"Try again; 'python -m lab doctor' says what is missing.{last}"
            error = "The planner ended before it answered."
            request._settle({"error": error, "hint": hint, "was_ended": was_ended})

    def _forget(self, request: Request) -> None:
        with self._lock:
            if self._requests.pop(request.id, None) is None or self._process is None:
                return
            with contextlib.suppress(OSError):  # it has ended, and the request with it
                self._write({"cancel": request.id})

    def _end(self) -> None:
        process, self._process = self._process, None
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request._settle(
                {"error": "The planner was ended.", "hint": "Ask again.", "was_ended": True}
            )
        if process is None:
            return
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        # It keeps nothing, and its processes end with it: half a second of taking its libraries
        # down would be waited for in vain.
        process.kill()
        process.wait()


def _reply(line: bytes) -> dict[str, Any]:
    """The reply in a line; empty if it is none."""
    try:
        reply = json.loads(line)
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}


def _reads_files(request: dict[str, Any]) -> bool:
    """Whether the request depends on more than the lab's own configs: rows, templates, patterns
    or configs of somebody else."""
    if request["ask"] not in ("estimate", "limits", "plan"):
        return True
    spec = request.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    method = spec.get("method")
    method = method if isinstance(method, dict) else {}
    targets = [method.get(name) for name in ("target_modules", "targets")]  # the former name, too
    is_known = str(spec.get("model", "")).startswith(("config:", "builtin:"))
    is_plain = all(target in (None, "all-linear") for target in targets)
    return not is_known or not is_plain or bool((request.get("how") or {}).get("time"))


planner = Planner()
