"""Checkpointing of the fewest layers that makes a run fit: each one spared saves time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lab.memory import estimate as memory
from lab.memory.formula import Estimate
from lab.memory.shadow.layers import SHORT
from lab.methods import Method
from lab.spec import RunSpec

RESERVE = 0.06  # of the device's memory, left for fragments and what others take


def with_checkpointing(
    config: Any, spec: RunSpec, method: Method, *, memory_bytes: int, **how: Any
) -> tuple[RunSpec, Estimate]:
    """(the spec, its prediction) for a run that does not fit without checkpointing: of the fewest
    layers that leave the reserve, or of all. A number of layers in the spec stays."""
    found = memory.cached(config, spec, method, memory_bytes=memory_bytes, **how)
    if not found.fits or found.source != "shadow" or spec.train.checkpointed_layers is not None:
        return spec, found
    room = int(memory_bytes * (1 - RESERVE))
    return fewest(config, spec, method, found, memory_bytes=room, **how)


def fewest(
    config: Any,
    spec: RunSpec,
    method: Method,
    everywhere: Estimate,
    *,
    memory_bytes: int,
    **how: Any,
) -> tuple[RunSpec, Estimate]:
    """(the spec, its prediction) with as few recomputing layers as fit into `memory_bytes`.

    `spec` recomputes all layers, which `everywhere` predicts; without any it does not fit. That
    answer stands where the layers differ: each number of them would be traced as a whole.
    """
    count = config.num_hidden_layers
    if "layer extension" not in " ".join(everywhere.notes) and count > SHORT:
        return spec, everywhere
    best = spec, everywhere
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        some = replace(spec, train=replace(spec.train, checkpointed_layers=middle))
        found = memory.cached(config, some, method, memory_bytes=memory_bytes, **how)
        if found.source == "shadow" and found.fits:
            high, best = middle, (some, found)
        else:
            low = middle
    return best
