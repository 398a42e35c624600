"""Prediction against measurement: of one run, and over all finished runs of this machine."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from lab import paths
from lab.atomic_files import number, part, read_object
from lab.paths import RunDir
from lab.runs import record_reader

PARTS = ("weights", "gradients", "optimizer")


@dataclass(frozen=True)
class Outcome:
    """One finished run. `error`: predicted over measured, less one; on a CPU a bound's distance."""

    id: str
    method: str
    device: str
    source: str
    predicted: int
    measured: int
    fitted: bool

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def outcome(run: RunDir) -> Outcome | None:
    """What became of the prediction of a run; None while there is nothing to hold it against."""
    predicted = read_object(run.estimate) or {}
    result = read_object(run.result) or {}
    measured = number(part(result, "summary").get("peak_bytes"))
    peak = number(predicted.get("peak_bytes"))
    if not isinstance(measured, int) or not isinstance(peak, int) or measured <= 0:
        return None
    return Outcome(
        run.id,
        str(part(read_object(run.spec), "method").get("name", "")),
        str(predicted.get("device", "cpu")),
        str(predicted.get("source", "formula")),
        peak,
        measured,
        not result.get("out_of_memory"),
    )


def history_of_errors(device: str = "cuda") -> dict[str, Any]:
    """{"runs": outcomes oldest first, "median", "worst"} of the runs on `device` here; the errors
    are shares, and None without runs."""
    errors = [outcome(run) for run in reversed(paths.all_runs())]
    runs = [error for error in errors if error is not None and error.device == device]
    sizes = [abs(run.error) for run in runs]
    return {
        "runs": runs,
        "median": statistics.median(sizes) if sizes else None,
        "worst": max(sizes, default=None),
    }


def parts(run: RunDir) -> list[dict[str, Any]]:
    """Predicted and measured bytes of each part: tensors by kind as the worker counted them, all
    else by difference from the measured peak. Empty before the first step."""
    predicted = read_object(run.estimate) or {}
    event = record_reader.last_event(run, "memory")
    measured, by_part = _sizes(event), _sizes(predicted.get("bytes"))
    if not measured or not by_part:
        return []
    rows = [
        {"part": name, "predicted": by_part.get(name), "measured": measured.get(name)}
        for name in PARTS
    ]
    peaks = _sizes(event.get("peaks"))
    if peaks:
        resting = measured.get("weights", 0) + measured.get("optimizer", 0)
        at_peak = _sizes(predicted.get("at_peak")) or by_part
        rest = sum(at_peak.get(name, 0) for name in ("gradients", "activations", "loss"))
        rows.append(
            {
                "part": "all else at the peak",
                "predicted": rest + at_peak.get("workspace", 0),
                "measured": max(peaks.values()) - resting,
            }
        )
    return rows


def _sizes(value: Any) -> dict[str, float]:
    """The numbers of a stored object; the file may hold anything."""
    stored = value if isinstance(value, dict) else {}
    return {key: size for key, item in stored.items() if (size := number(item)) is not None}
