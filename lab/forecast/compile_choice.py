"""Whether a run's decoder layers are compiled: where it is long enough to pay for the start."""

from __future__ import annotations

from dataclasses import replace

from lab import formatting
from lab.forecast.model_profile import ModelProfile
from lab.forecast.resolve import Resolution
from lab.forecast.runtime_estimate import compiling_pays, runtime_forecast
from lab.forecast.target_device import TargetDevice
from lab.forecasts import DatasetStats


def choose_compile(
    resolution: Resolution, profile: ModelProfile, device: TargetDevice, stats: DatasetStats
) -> tuple[str, str]:
    """("on" or "off", why); what was asked for stays."""
    train = resolution.spec.train
    if "compile" not in resolution.is_open:
        return train.compile, f"is {train.compile}, as asked for"
    if not device.on_gpu:
        return "off", "pays on a GPU only"
    if not resolution.method.can_compile:
        return "off", f"does not go with {resolution.method.title}"
    plain, compiled = (
        runtime_forecast(
            replace(resolution.spec, train=replace(train, compile=way)), profile, device, stats
        )
        for way in ("off", "on")
    )
    if plain is None or compiled is None:
        return "off", "is left out: the run's length is not known"
    took = f"{formatting.duration(compiled.seconds)} against {formatting.duration(plain.seconds)}"
    if compiling_pays(plain, compiled):
        return "on", f"pays: {took}"
    return "off", f"would not pay: {took}"
