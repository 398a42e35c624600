"""Whether a run's decoder layers are compiled: where it is long enough to pay for the start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lab import formatting
from lab.forecast import runtime_estimate
from lab.forecast.formula import Sizes
from lab.forecast.runtime_estimate import TargetDevice
from lab.forecasts import DatasetStats
from lab.spec import RunSpec


def choose(
    asked: RunSpec,
    spec: RunSpec,
    method: Any,
    costs: Any,
    sizes: Sizes,
    device: TargetDevice,
    stats: DatasetStats,
    bits: int = 16,
) -> tuple[str, str]:
    """("on" or "off", why) for the resolved `spec`; what was `asked` for stays."""
    if asked.train.compile != "auto":
        return asked.train.compile, f"{asked.train.compile}, as requested"
    if not device.on_gpu:
        return "off", "off: only worthwhile on a GPU"
    if not method.can_compile:
        return "off", f"off: {method.title} does not support it"
    ways = [replace(spec, train=replace(spec.train, compile=way)) for way in ("off", "on")]
    plain, compiled = (
        runtime_estimate.pace(one, costs, sizes, device, stats, bits) for one in ways
    )
    if plain is None or compiled is None:
        return "off", "off: length of the run unknown"
    took = f"{formatting.duration(compiled.seconds)} against {formatting.duration(plain.seconds)}"
    if runtime_estimate.compiling_pays(plain, compiled):
        return "on", f"on: saves time ({took})"
    return "off", f"off: would not save time ({took})"
