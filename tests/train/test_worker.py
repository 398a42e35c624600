"""Every way out of an attempt is written down: the state, the reason, and what to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lab import process
from lab.atomic_files import read_object, write_json
from lab.errors import Cancelled, LabError
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.result import TrainingSummary
from lab.train import worker
from lab.train.telemetry import Telemetry


@pytest.fixture
def outcome(
    lab_home: Path,
    small_spec: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, dict[str, Any], RunDir]]:
    """(exit code, result, run) of an attempt that ends by `go(attempt)`."""

    def work(go: Callable[..., str], attempts: int = 0) -> tuple[int, dict[str, Any], RunDir]:
        run = RunDir(lab_home / "runs" / "20260101-000000-x-abcd")
        run.path.mkdir(parents=True)
        write_json(run.spec, small_spec("lora"))
        parts = {"weights": 10_000_000, "loss": 70_000_000, "gradients": 30_000_000, "x": 1}
        write_json(run.estimate, {"peak_bytes": 110_000_001, "bytes": parts})
        for number in range(1, attempts + 1):
            (run.attempts / str(number)).mkdir(parents=True)

        class Attempt:
            def __init__(self, run: RunDir, spec: Any, telemetry: Telemetry, commands: Any) -> None:
                self.telemetry = telemetry

                self.summary = TrainingSummary()

            def run_training(self) -> str:
                return go(self)

        module = ModuleType("lab.train.attempt")
        module.Attempt = Attempt  # type: ignore[attr-defined]
        monkeypatch.setitem(__import__("sys").modules, "lab.train.attempt", module)
        monkeypatch.setattr(process, "await_registration", lambda run: None)
        code = worker.work(run)
        return code, read_object(run.result) or {}, run

    return work


def failing(error: BaseException, phase: str = "training") -> Callable[..., str]:
    def go(attempt: Any) -> str:
        attempt.telemetry.enter_phase(phase)
        attempt.summary = TrainingSummary(step=3)
        raise error

    return go


@pytest.mark.parametrize("state", ["done", "stopped"])
def test_an_attempt_that_ends_well(outcome: Callable[..., Any], state: str) -> None:
    def go(attempt: Any) -> str:
        attempt.summary = TrainingSummary(step=12)
        time.sleep(0.05)
        return state

    before = time.time()
    code, result, run = outcome(go, attempts=2)
    assert code == 0 and result["state"] == state
    assert result["summary"] == {"step": 12} and result["attempt"] == 3
    assert result["message"] == result["hint"] == "" and "out_of_memory" not in result
    assert before <= result["started"] <= result["ended"] - 0.05
    assert record_reader.events(run)[-1]["phase"] == "ended"
    assert record_reader.events(run)[-1]["attempt"] == 3
    assert (read_object(run.heartbeat) or {})["phase"] == "ended"


def test_a_cancelled_attempt_is_no_failure(outcome: Callable[..., Any]) -> None:
    code, result, _ = outcome(failing(Cancelled()))
    assert (code, result["state"], result["message"]) == (0, "cancelled", "")


@pytest.mark.parametrize(
    ("command", "saved", "download", "words"),
    [
        ("stop", (), "", ("stopped", "Stopped before the first step: ", "Resume it to begin.")),
        ("stop", (8, 12), "", ("stopped", "nothing to save since step 12.", "from step 12.")),
        ("stop", (), "3 MB of x", ("stopped", "Stopped while downloading: 3 MB of x are", "there")),
        ("cancel", (), "3 MB of x", ("cancelled", "Cancelled while downloading: 3 MB", "there")),
        ("cancel", (8,), "", ("cancelled", "", "")),
    ],
)
def test_an_early_end_says_what_is_left_to_go_on_with(
    outcome: Callable[..., Any],
    command: str,
    saved: tuple[int, ...],
    download: str,
    words: tuple[str, str, str],
) -> None:
    def go(attempt: Any) -> str:
        for step in saved:
            (attempt.telemetry.run.checkpoints / f"step-{step}").mkdir(parents=True)
        ended = Cancelled(command)
        ended.kept_download = download
        raise ended

    code, result, _ = outcome(go)
    state, message, hint = words
    assert (code, result["state"]) == (0, state)
    assert message in result["message"] and hint in result["hint"]
    assert bool(message) == bool(result["message"])


def test_a_message_of_the_lab_keeps_its_way_out(
    outcome: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, _ = outcome(failing(LabError("The data has changed.", "Put it back.")))
    assert (code, result["state"], result["attempt"]) == (1, "failed", 1)
    assert (result["message"], result["hint"]) == ("The data has changed.", "Put it back.")
    assert result["summary"] == {"step": 3}, "how far it came is kept"
    output = capsys.readouterr()
    assert "The data has changed." in output.out and "Traceback" not in output.out + output.err


def test_an_error_of_a_library_points_to_the_log(
    outcome: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, _ = outcome(failing(KeyError("w")))
    assert code == 1 and result["message"] == "KeyError: 'w'" and "log" in result["hint"]
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_recognised(outcome: Callable[..., Any]) -> None:
    _, result, _ = outcome(failing(OSError(28, "No space left on device")))
    assert "The disk is full" in result["hint"] and "out_of_memory" not in result


def cards_own() -> BaseException:
    return type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory.")


@pytest.mark.parametrize("error", [MemoryError(), cards_own()], ids=["host", "card"])
def test_out_of_memory_names_the_phase_and_the_largest_parts(
    outcome: Callable[..., Any], error: BaseException
) -> None:
    code, result, _ = outcome(failing(error, phase="evaluating"))
    assert code == 1 and result["out_of_memory"]["phase"] == "evaluating"
    assert result["message"] == (
        "Out of memory during evaluating. Largest parts (estimated): loss 70.00 MB, gradients "
        "30.00 MB, weights 10.00 MB."
    )
    assert "lab fixes" in result["hint"]
    assert list(result["out_of_memory"]["parts"]) == ["loss", "gradients", "weights"]
    assert result["out_of_memory"]["predicted_peak_bytes"] == 110_000_001
