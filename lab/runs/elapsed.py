"""How long a run has taken, all phases of all its attempts, and what is to be expected of it."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from lab import formatting
from lab.atomic_files import finite_number, part, read_object
from lab.checked_run import read_forecast
from lab.forecasts import RuntimeForecast
from lab.paths import RunDir
from lab.runs.result import read_file, read_result


def elapsed_s(run: RunDir) -> float | None:
    """Seconds from the start of the worker to its end, or to now while it works; with those of
    earlier attempts. None before the first."""
    result = read_result(run)
    results = [result, *(read_file(file) for file in run.attempts.glob("*/result.json"))]
    spans = [ended.seconds for ended in results if ended is not None]
    begun = finite_number((read_object(run.process) or {}).get("time"))
    if result is None and begun:
        spans.append(max(0.0, time.time() - begun))
    known = [span for span in spans if span is not None]
    return sum(known) if known else None


def expected(run: RunDir, step: float | None, seconds: float | None) -> RuntimeForecast | None:
    """The forecast that the run was admitted with, corrected by the `step` steps that took
    `seconds` of training."""
    forecast = read_forecast(run).runtime
    if forecast is None or step is None or seconds is None:
        return forecast
    limit = finite_number(part(read_object(run.spec), "train").get("max_seconds"))
    return corrected(forecast, int(step), seconds, limit)


def corrected(
    forecast: RuntimeForecast, step: int, seconds: float, limit: float | None = None
) -> RuntimeForecast:
    """With `step` steps that took `seconds`: the rest goes as they did, and what else computes with
    it. `limit`: seconds of training that end the run."""
    if min(step, forecast.steps) < 1 or min(seconds, forecast.seconds) <= 0:
        return forecast
    ratio = (seconds / step) / (forecast.seconds / forecast.steps)
    return replace(
        forecast,
        seconds=min(forecast.seconds * ratio, limit or math.inf),
        evaluating_s=forecast.evaluating_s * ratio,
        sampling_s=forecast.sampling_s * ratio,
        probing_s=forecast.probing_s * ratio,
        tokens_per_s=forecast.tokens_per_s / ratio,
    )


def in_words(run: RunDir) -> str:
    """What it took, beside what was predicted before it began."""
    runtime = expected(run, None, None)
    took = formatting.duration(elapsed_s(run))
    return f"{took}, {formatting.duration(runtime.whole_s)} predicted" if runtime else took
