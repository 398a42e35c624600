"""Prediction against measurement: of one run, and over all finished runs of this machine."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from lab import paths
from lab.atomic_files import finite_number
from lab.checked_run import read_forecast
from lab.forecasts import Parts
from lab.formatting import percent, quantity, signed_percent
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.result import read_result

COUNTED = ("weights", "gradients", "optimizer")  # parts that the worker counts as tensors


@dataclass(frozen=True)
class EstimateError:
    """One finished run. `error`: predicted over measured, less one. An estimate with a margin (of a
    processor) is not off by that: it holds where it is not below what was measured."""

    id: str
    device: str
    predicted: int
    measured: int
    has_margin: bool = False

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def holds(self) -> bool:
        """Whether it is enough."""
        return self.predicted >= self.measured

    @property
    def in_words(self) -> str:
        """How the estimate compares: "+0.3 %", or with a margin "within the margin"."""
        if not self.has_margin:
            return signed_percent(self.error)
        return "within the margin" if self.holds else f"above the estimate by {percent(self.error)}"


@dataclass(frozen=True)
class ErrorHistory:
    """Of the finished runs on one kind of device, oldest first; median and worst are sizes, of the
    estimates without a margin."""

    errors: tuple[EstimateError, ...]
    median: float
    worst: float

    @property
    def in_words(self) -> str:
        """ "4 runs: median error 0.2 %, largest 0.3 %", or how many margins hold."""
        margins = [error for error in self.errors if error.has_margin]
        exact = len(self.errors) - len(margins)
        parts = []
        if exact:
            runs = quantity(exact, "finished run")
            median, worst = percent(self.median), percent(self.worst)
            parts.append(f"{runs}: median error {median}, largest {worst}")
        if margins:
            runs = quantity(len(margins), "finished run")
            within = sum(error.holds for error in margins)
            parts.append(f"{runs}: {within} of {len(margins)} within the margin")
        return "; ".join(parts)


@dataclass(frozen=True)
class MeasuredPart:
    """Bytes of one part of a run's memory."""

    name: str
    predicted: float
    measured: float | None


def estimate_error(run: RunDir) -> EstimateError | None:
    """How far off the prediction of a run was; None while there is nothing to hold it against."""
    forecast = read_forecast(run)
    result, predicted = read_result(run), forecast.memory.peak_bytes
    measured = result.summary.peak_bytes if result else None
    if measured is None or measured <= 0 or predicted <= 0:
        return None
    return EstimateError(
        run.id, forecast.device, predicted, measured, has_margin=forecast.memory.has_margin
    )


def error_history(device: str = "cuda") -> ErrorHistory | None:
    """Of the runs on `device` here; None without any."""
    errors = [estimate_error(run) for run in reversed(paths.all_runs())]
    on_device = tuple(error for error in errors if error is not None and error.device == device)
    if not on_device:
        return None
    sizes = [abs(error.error) for error in on_device if not error.has_margin] or [0.0]
    return ErrorHistory(on_device, statistics.median(sizes), max(sizes))


def measured_parts(run: RunDir) -> list[MeasuredPart]:
    """Predicted and measured bytes of each part: tensors by kind as the worker counted them, all
    else by difference from the measured peak. Empty before the first step."""
    memory = read_forecast(run).memory
    event = record_reader.last_event(run, "memory")
    measured, largest = _sizes(event), memory.largest
    if not measured or largest is None:
        return []
    rows = [MeasuredPart(name, largest.get(name), measured.get(name)) for name in COUNTED]
    peaks = _sizes(event.get("peaks"))
    if peaks:
        resting = measured.get("weights", 0) + measured.get("optimizer", 0)
        at_peak: Parts = memory.at_peak or largest
        rest = sum(at_peak.get(name) for name in ("gradients", "activations", "loss", "workspace"))
        rows.append(
            MeasuredPart("activations and other (at the peak)", rest, max(peaks.values()) - resting)
        )
    return rows


def _sizes(value: Any) -> dict[str, float]:
    """The numbers of a stored object; the file may hold anything."""
    stored = value if isinstance(value, dict) else {}
    return {key: size for key, item in stored.items() if (size := finite_number(item)) is not None}
