"""Finds the smallest number of checkpointed layers that fits; each of the others saves time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lab.forecast import estimator as memory
from lab.forecast.trace.layer_repetition import RUN
from lab.forecasts import Forecast, How
from lab.methods import Method
from lab.spec import RunSpec

RESERVE = 0.06  # of the device's memory, left for fragments and what others take


def with_checkpointing(
    config: Any, spec: RunSpec, method: Method, *, memory_bytes: int, **how: Any
) -> tuple[RunSpec, Forecast]:
    """(the spec, its prediction) for a run that does not fit without checkpointing: of the fewest
    layers that leave the reserve, or of all. A number of layers in the spec stays."""
    found = memory.cached(config, spec, method, memory_bytes=memory_bytes, **how)
    is_given = spec.train.checkpointed_layers is not None
    if is_given or not found.memory.fits or not found.memory.how.is_exact:
        return spec, found
    room = int(memory_bytes * (1 - RESERVE))
    return fewest(config, spec, method, found, memory_bytes=room, **how)


def fewest(
    config: Any,
    spec: RunSpec,
    method: Method,
    everywhere: Forecast,
    *,
    memory_bytes: int,
    **how: Any,
) -> tuple[RunSpec, Forecast]:
    """(the spec, its prediction) with as few recomputing layers as fit into `memory_bytes`.

    `spec` recomputes all layers, which `everywhere` predicts; without any it does not fit. That
    answer stands where the layers differ: each number of them would be traced as a whole.
    """
    count = config.num_hidden_layers
    if everywhere.memory.how is How.EVERY_LAYER and count > 2 * RUN:
        return spec, everywhere
    best = spec, everywhere
    low, high = 0, count  # the fewest lie between: more than low, and high is enough
    place = _guess(config, spec, method, everywhere, memory_bytes, how)
    step = 1
    while high - low > 1:
        place = min(max(place, low + 1), high - 1)
        some = replace(spec, train=replace(spec.train, checkpointed_layers=place))
        found = memory.cached(config, some, method, memory_bytes=memory_bytes, **how)
        if found.memory.how.is_exact and found.memory.fits:
            high, best = place, (some, found)
            place -= step
        else:
            low = place
            place += step
        step *= 2
    return best


def _guess(
    config: Any,
    spec: RunSpec,
    method: Method,
    everywhere: Forecast,
    memory_bytes: int,
    how: dict[str, Any],
) -> int:
    """The fewest layers by outlines, set right by how far these are off for all layers."""

    def outlined(layers: int | None) -> int:
        some = replace(spec, train=replace(spec.train, checkpointed_layers=layers))
        options = {**how, "shadow": False}
        forecast = memory.predict(config, some, method, memory_bytes=memory_bytes, **options)
        return forecast.memory.peak_bytes

    off = everywhere.memory.peak_bytes - outlined(None)
    low, high = 0, int(config.num_hidden_layers)
    while high - low > 1:
        middle = (low + high) // 2
        if outlined(middle) + off <= memory_bytes:
            high = middle
        else:
            low = middle
    return high
