"""Whether a run fits into this machine's memory; if not, the smallest change that makes it fit."""

from __future__ import annotations

from typing import Any

from lab import formatting
from lab.errors import Problem
from lab.forecast import memory_savers
from lab.forecast.memory_forecast import TraceOptions, predict_memory
from lab.forecast.resolve import resolve
from lab.forecast.stored_forecasts import memory_forecast
from lab.forecast.target_device import TargetDevice
from lab.forecasts import MemoryForecast
from lab.models.base_model import BaseModel
from lab.spec import RunSpec

NEAR = 0.02  # of the memory: so close to it, the outline's word is not enough


def problems(
    spec: RunSpec, memory: MemoryForecast, base: BaseModel, device: TargetDevice
) -> list[Problem]:
    """The refusal of a run that will not fit, unless its spec says to start anyway. One of
    which that cannot be said is not refused."""
    if memory.fits is not False or spec.hardware.ignore_memory:
        return []
    return [Problem("hardware.ignore_memory", _refusal(spec, memory, base, device))]


def _refusal(spec: RunSpec, memory: MemoryForecast, base: BaseModel, device: TargetDevice) -> str:
    owner = "the GPU" if device.on_gpu else "this machine"
    reserved = ""
    if memory.needed_bytes > memory.peak_bytes:
        size = formatting.size(memory.needed_bytes)
        reserved = f"for which the allocator reserves {size}; "
    message = (
        f"the run needs {formatting.size(memory.peak_bytes)} at its peak "
        f"({memory.peak_phase}), {reserved}{owner} has {formatting.size(device.memory_bytes)}. "
    )
    change = smallest_change(spec, base, device)
    if change is None:
        message += "No single change makes it fit; choose a smaller model or a lighter method. "
    else:
        saver, peak = change
        settings = ", ".join(
            f"{key}={value['name'] if isinstance(value, dict) else value}"
            for key, value in saver.changes.items()
        )
        message += (
            f"The smallest change that fits: {saver.title.lower()} ({settings}), "
            f"{formatting.size(peak)}. "
        )
    return message + "Set hardware.ignore_memory to true to start anyway."


def smallest_change(
    spec: RunSpec, base: BaseModel, device: TargetDevice
) -> tuple[memory_savers.MemorySaver, int] | None:
    """The gentlest change, made again if it can be (halved rows, shorter rows), that makes `spec`
    fit by its outline; with its predicted peak."""

    def changed(value: dict[str, Any]) -> tuple[MemoryForecast, dict[str, Any]]:
        """(the memory of the spec in `value`, that spec with defaults filled in)."""
        resolution = resolve(RunSpec.from_stored(value), device.has_bf16).fitted_to(base.model)
        limit, packed = device.memory_bytes or 0, resolution.spec.data.packing == "on"
        outline = TraceOptions(device.on_gpu, packed, traced=False)
        memory = predict_memory(base.config, resolution.spec, outline, limit)
        # what the allocator reserves is known of a traced step only
        if device.on_gpu and memory.peak_bytes < (1 + NEAR) * limit:
            options = TraceOptions(device.on_gpu, packed)
            memory = memory_forecast(base.config, resolution.spec, options, limit)
        return memory, resolution.spec.to_json()

    for saver in memory_savers.candidates(spec.to_json(), on_gpu=device.on_gpu):
        changes, value = dict(saver.changes), spec.to_json()
        step: memory_savers.MemorySaver | None = saver
        while step is not None:
            changes |= step.changes
            memory, value = changed(step.apply(value))
            if memory.fits:
                title = saver.title if changes == saver.changes else saver.title.split(" (")[0]
                change = memory_savers.MemorySaver(title, changes, saver.keeps_effective_batch)
                return change, memory.peak_bytes
            # the same kind of change once more
            again = memory_savers.candidates(value, on_gpu=device.on_gpu)
            step = next(
                (other for other in again if other.changes.keys() == saver.changes.keys()), None
            )
            if step is not None and step.changes == saver.changes:
                step = None
    return None
