"""Whether a run's decoder layers are compiled: where it is long enough to pay for the start."""

from __future__ import annotations

from dataclasses import replace

from lab import formatting
from lab.data.row_sizes import RowSizes
from lab.forecast.model_profile import ModelProfile
from lab.forecast.resolve import Resolution
from lab.forecast.runtime_estimate import compiling_pays, runtime_forecast
from lab.forecast.target_device import TargetDevice
from lab.forecasts import DatasetStats


def choose_compile(
    resolution: Resolution,
    profile: ModelProfile,
    device: TargetDevice,
    stats: DatasetStats,
    rows: RowSizes | None = None,
) -> tuple[str, str]:
    """("on" or "off", why); what was asked for stays."""
    train = resolution.spec.train
    if "compile" not in resolution.is_open:
        return train.compile, f"{train.compile}, as requested"
    if not device.on_gpu:
        return "off", "off: only worthwhile on a GPU"
    if not resolution.method.can_compile:
        return "off", f"off: {resolution.method.title} does not support it"
    plain, compiled = (
        runtime_forecast(
            replace(resolution.spec, train=replace(train, compile=way)),
            profile,
            device,
            stats,
            rows=rows,
        )
        for way in ("off", "on")
    )
    if plain is None or compiled is None:
        return "off", "off: length of the run unknown"
    took = f"{formatting.duration(compiled.seconds)} against {formatting.duration(plain.seconds)}"
    if compiling_pays(plain, compiled):
        return "on", f"on: saves time ({took})"
    return "off", f"off: would not save time ({took})"
