"""Where a run stops to fit a device: the longest row, the largest batch, the largest model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lab.fit_answers import FitLimits
from lab.forecast.memory_forecast import (
    StepFails,
    TraceOptions,
    outline_for_any_rows,
    predict_memory,
)
from lab.forecast.resolve import Resolution
from lab.forecast.target_device import TargetDevice
from lab.models import catalog, shipped_configs, weights
from lab.spec import RunSpec

MAX_BATCH_SIZE = 4096
NEAR = 3  # rows by which a line through two outlines may be off


def fit_limits(resolution: Resolution, config: Any, device: TargetDevice) -> FitLimits:
    """What still fits into `device` by outlines, one thing changed at a time."""
    spec, memory_bytes = resolution.spec, float(device.memory_bytes or 0)
    is_open = "activation_checkpointing" in resolution.is_open
    if is_open and resolution.method.can_checkpoint_activations:
        spec = replace(spec, train=replace(spec.train, activation_checkpointing="on"))
    options = TraceOptions(device.on_gpu, traced=False)

    def peak(changed: RunSpec, config: Any = config) -> float:
        """Infinite where nobody can say it."""
        try:
            forecast = predict_memory(config, changed, options)
        except StepFails:
            return math.inf
        return forecast.peak_bytes if forecast.how.is_traced else math.inf

    def of_rows(rows: int) -> RunSpec:
        return replace(spec, train=replace(spec.train, batch_size=rows))

    def with_rows(rows: int) -> float:
        return peak(of_rows(rows))

    def about_with_rows(rows: int) -> float:
        """By the line through two outlines, which serve any number of rows."""
        short = outline_for_any_rows(config, of_rows(rows), options, MAX_BATCH_SIZE)
        if short is None:
            return math.inf
        return predict_memory(config, of_rows(rows), options, short=short).peak_bytes

    def with_length(tokens: int) -> float:
        return peak(replace(spec, data=replace(spec.data, max_length=tokens)))

    longest = getattr(config, "max_position_embeddings", None) or 1 << 20
    length = spec.data.max_length
    models = shipped_configs.shipped()

    def of_model(count: int) -> float:
        """The peak with the shipped config of that rank, counted from the smallest."""
        other = weights.load_config(catalog.resolve_config(models[count - 1].id))
        reach = getattr(other, "max_position_embeddings", None) or longest
        try:
            return peak(
                replace(spec, data=replace(spec.data, max_length=min(reach, length))), other
            )
        except ValueError:
            return math.inf  # the method does not take this architecture

    rank = largest_that_fits(of_model, memory_bytes, len(models))
    rows = largest_that_fits(about_with_rows, memory_bytes, MAX_BATCH_SIZE, spec.train.batch_size)
    return FitLimits(
        longest_row=largest_that_fits(with_length, memory_bytes, longest, length),
        largest_batch=confirmed(with_rows, memory_bytes, MAX_BATCH_SIZE, rows),
        largest_model=models[rank - 1].name if rank else "",
    )


def confirmed(peak: Callable[[int], float], memory_bytes: float, most: int, about: int) -> int:
    """The largest count up to `most` with a peak of at most `memory_bytes`, which is `about` that
    many; 0 if one has more."""
    count = about
    for _ in range(NEAR):
        if count < most and peak(count + 1) <= memory_bytes:
            count += 1
        elif count and peak(count) > memory_bytes:
            count -= 1
        else:
            return count
    return largest_that_fits(peak, memory_bytes, most, about or 1)


def largest_that_fits(
    peak: Callable[[int], float], memory_bytes: float, most: int, near: int | None = None
) -> int:
    """The largest count up to `most` with a peak of at most `memory_bytes`; 0 if one has more.

    Peaks that grow along a line are found in a few steps from `near`; without it the middle is
    tried each time.
    """
    low, high = 0, most + 1  # low fits, high does not
    peaks: dict[int, float] = {}
    count = most if near else high // 2  # both ends tell where the line meets the memory_bytes
    for step in itertools.count():
        if high - low <= 1:
            return low
        count = min(max(count, low + 1), high - 1)
        peaks[count] = peak(count)
        if peaks[count] <= memory_bytes:
            low = count
        else:
            high = count
        ends = [end for end in (low, high) if math.isfinite(peaks.get(end, math.inf))]
        if near and step == 0:
            count = near
        elif near is None or step % 4 == 3:
            count = (low + high) // 2
        elif len(ends) == 2 and peaks[high] > peaks[low]:
            share = (memory_bytes - peaks[low]) / (peaks[high] - peaks[low])
            count = low + int(share * (high - low))
        else:
            count = count * 2 if low == count else count // 2
    raise AssertionError("the bounds meet")
