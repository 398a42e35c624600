"""Finds the smallest number of checkpointed layers that fits; each of the others saves time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lab.forecast.memory_forecast import TraceOptions, predict_memory
from lab.forecast.stored_forecasts import memory_forecast
from lab.forecast.trace.layer_repetition import TRACED_LAYERS
from lab.forecasts import How, MemoryForecast
from lab.spec import RunSpec

RESERVE = 0.06  # of the device's memory, left for fragments and what others take
CERTAINLY_OVER = 1.2  # times the memory by the outline: need not be traced to be ruled out


def checkpointed_if_needed(
    config: Any, spec: RunSpec, options: TraceOptions, memory_bytes: int
) -> tuple[RunSpec, MemoryForecast]:
    """(the spec, its forecast): as it is if it fits, else with activation checkpointing of the
    fewest layers that leave the reserve, or of all. A number of layers in the spec stays."""
    outline = memory_forecast(config, spec, replace(options, traced=False), memory_bytes)
    if outline.peak_bytes <= CERTAINLY_OVER * memory_bytes:
        forecast = memory_forecast(config, spec, options, memory_bytes)
        if forecast.fits is not False:
            return spec, forecast
    spec = replace(spec, train=replace(spec.train, activation_checkpointing="on"))
    all_layers = memory_forecast(config, spec, options, memory_bytes)
    is_given = spec.train.checkpointed_layers is not None
    if is_given or not all_layers.fits or not all_layers.how.is_exact:
        return spec, all_layers
    return fewest_layers(config, spec, all_layers, options, int(memory_bytes * (1 - RESERVE)))


def fewest_layers(
    config: Any, spec: RunSpec, all_layers: MemoryForecast, options: TraceOptions, memory_bytes: int
) -> tuple[RunSpec, MemoryForecast]:
    """(the spec, its forecast) with as few recomputing layers as fit into `memory_bytes`.

    `spec` recomputes all layers, which `all_layers` predicts; without any it does not fit. That
    answer stands where the layers differ: each number of them would be traced as a whole.
    """
    count = config.num_hidden_layers
    if all_layers.how is How.EVERY_LAYER and count > 2 * TRACED_LAYERS:
        return spec, all_layers
    best = spec, all_layers
    low, high = 0, count  # the fewest lie between: more than low, and high is enough
    layers = _first_guess(config, spec, all_layers, options, memory_bytes)
    step = 1
    while high - low > 1:
        layers = min(max(layers, low + 1), high - 1)
        some = _with_layers(spec, layers)
        forecast = memory_forecast(config, some, options, memory_bytes)
        if forecast.how.is_exact and forecast.fits:
            high, best = layers, (some, forecast)
            layers -= step
        else:
            low = layers
            layers += step
        step *= 2
    return best


def _first_guess(
    config: Any, spec: RunSpec, all_layers: MemoryForecast, options: TraceOptions, memory_bytes: int
) -> int:
    """The fewest layers by outlines, set right by how far these are off for all layers."""

    def outlined(layers: int | None) -> int:
        some = _with_layers(spec, layers)
        return predict_memory(config, some, replace(options, traced=False)).peak_bytes

    off = all_layers.peak_bytes - outlined(None)
    low, high = 0, int(config.num_hidden_layers)
    while high - low > 1:
        middle = (low + high) // 2
        if outlined(middle) + off <= memory_bytes:
            high = middle
        else:
            low = middle
    return high


def _with_layers(spec: RunSpec, layers: int | None) -> RunSpec:
    return replace(spec, train=replace(spec.train, checkpointed_layers=layers))
