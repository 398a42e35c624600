"""Predictions held against what finished runs took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.atomic_files import write_json
from lab.paths import RunDir
from lab.runs import estimate_history

GB = 10**9


@pytest.fixture
def ended(lab_home: Path) -> Any:
    """`ended("k3f9", predicted, measured)`: a run that has ended, with its prediction."""

    def make(name: str, predicted: int, measured: int, **more: Any) -> RunDir:
        run = RunDir(lab_home / "runs" / f"20261122-10153{len(name)}-lora-{name[-4:]}")
        run.path.mkdir(parents=True)
        device = more.pop("device", "cuda")
        stored = {"peak_bytes": predicted, "device": device, "source": "shadow"}
        write_json(run.spec, {"method": {"name": "lora"}})
        write_json(run.estimate, stored | {"is_bound": more.pop("is_bound", False)})
        write_json(run.result, {"state": "done", "summary": {"peak_bytes": measured}, **more})
        return run

    return make


def test_an_overestimate_is_above_zero_and_an_underestimate_below(ended: Any) -> None:
    over = estimate_history.estimate_error(ended("abc1", 15 * GB, 10 * GB))
    under = estimate_history.estimate_error(ended("xabc2", 5 * GB, 10 * GB))
    assert over is not None and over.error == pytest.approx(0.5), "Half too much was predicted."
    assert under is not None and under.error == pytest.approx(-0.5), "Half too little."


def test_the_errors_of_this_machine_by_device_oldest_first(ended: Any) -> None:
    ended("abc1", 11 * GB, 10 * GB)  # + 10 %
    ended("xabc2", 7 * GB, 10 * GB)  # - 30 %
    ended("xxabc3", 12 * GB, 10 * GB)  # + 20 %
    ended("xxxabc4", 50 * GB, 10 * GB, device="cpu")
    history = estimate_history.error_history("cuda")
    assert history is not None
    assert [run.id[-4:] for run in history.errors] == ["abc1", "abc2", "abc3"], "Oldest first."
    assert history.median == pytest.approx(0.2), "The middle of the sizes 10, 20 and 30 %."
    assert history.worst == pytest.approx(0.3), "Too little by 30 % is worse than 20 % too much."
    other = estimate_history.error_history("cpu")
    assert other is not None and other.worst == 4.0
    assert [run.id[-4:] for run in other.errors] == ["abc4"]
    assert estimate_history.error_history("tpu") is None


def test_without_a_measurement_or_a_prediction_there_is_no_error(ended: Any) -> None:
    assert estimate_history.estimate_error(ended("abc1", 0, GB)) is None, "Nothing was predicted."
    assert estimate_history.estimate_error(ended("xxabc3", GB, 0)) is None, "Nothing was measured."


def test_the_parts_of_the_peak_are_told_apart(ended: Any) -> None:
    run = ended("abc1", 20 * GB, 19 * GB)
    at_peak = {
        "weights": 4, "optimizer": 8, "gradients": 2, "activations": 3, "loss": 1, "workspace": 5,
    }  # fmt: skip
    write_json(
        run.estimate, {"bytes": {"weights": 4, "gradients": 4, "optimizer": 8}, "at_peak": at_peak}
    )
    assert estimate_history.measured_parts(run) == [], "Nothing is measured before the first step."
    measured = {
        "weights": 5,
        "gradients": 4,
        "optimizer": 9,
        "peaks": {"forward": 17, "backward": 26},
    }
    run.events.write_text(json.dumps({"kind": "memory", **measured}) + "\n")
    rows = {row.name: (row.predicted, row.measured) for row in estimate_history.measured_parts(run)}
    assert rows == {
        "weights": (4, 5),
        "gradients": (4, 4),
        "optimizer": (8, 9),
        # 2 + 3 + 1 + 5 of what was predicted; 26 less the 14 that rest there all the time
        "activations and other (at the peak)": (11, 12),
    }


def test_a_bound_is_not_an_error(ended: Any) -> None:
    """On a CPU the estimate is a bound on the resident memory: it holds or it does not."""
    ended("abc1", 14 * GB, 10 * GB, device="cpu", is_bound=True)
    ended("xabc2", 9 * GB, 10 * GB, device="cpu", is_bound=True)
    history = estimate_history.error_history("cpu")
    assert history is not None
    assert [error.in_words for error in history.errors] == [
        "within the margin", "above the estimate by 10 %",
    ]  # fmt: skip
    assert history.in_words == "2 finished runs: 1 of 2 within the margin"
    ended("xxabc3", 10_030_000_000, 10 * GB)
    exact = estimate_history.error_history("cuda")
    assert exact is not None and exact.errors[0].in_words == "+0.3 %"
    assert exact.in_words == "1 finished run: median error 0.3 %, largest 0.3 %"
