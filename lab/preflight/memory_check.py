"""Whether a run fits into this machine's memory; if not, the smallest change that makes it fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lab import formatting, methods
from lab.errors import Problem
from lab.forecast import estimator as memory
from lab.forecast import formula, memory_savers, selective_checkpointing
from lab.forecast.resolve import fit_method, resolve
from lab.forecast.runtime_estimate import TargetDevice
from lab.forecasts import Forecast, MemoryForecast
from lab.methods import Method
from lab.models.empty_model import meta_model
from lab.spec import RunSpec

NEAR = 0.02  # of the memory: so close to it, the outline's word is not enough


def admit(
    spec: RunSpec,
    asked: RunSpec,
    config: Any,
    method: Method,
    sizes: formula.Sizes,
    device: TargetDevice,
    problems: list[Problem],
) -> tuple[RunSpec, Forecast]:
    """(the spec with automatic checkpointing decided, its prediction).

    On a GPU the prediction is the shadow step's, on a CPU its outline with a margin. `sizes` are
    counted with the model's own tokenizer. A run that will not fit becomes a problem,
    unless the spec says to start it all the same; one of which that cannot be said does not.
    """
    forecast = memory.cached(
        config,
        spec,
        method,
        on_gpu=device.on_gpu,
        memory_bytes=device.memory_bytes,
        packed=spec.data.packing == "on",
        shadow=device.on_gpu,
    )
    if not device.on_gpu:
        forecast = replace(
            forecast,
            memory=replace(forecast.memory, parameters=sizes.parameters, trainable=sizes.trainable),
            disk=formula.disk_forecast(sizes, spec),
        )
    is_open = asked.train.activation_checkpointing == "auto" and device.on_gpu
    if forecast.memory.fits is False and is_open and method.can_checkpoint_activations:
        spec = replace(spec, train=replace(spec.train, activation_checkpointing="on"))
        spec, forecast = selective_checkpointing.with_checkpointing(
            config,
            spec,
            method,
            memory_bytes=device.memory_bytes or 0,
            on_gpu=True,
            packed=spec.data.packing == "on",
        )
    forecast = replace(forecast, context_bytes=device.context_bytes)
    if forecast.memory.fits is False and not spec.hardware.ignore_memory:
        refusal = _refusal(spec, forecast.memory, config, device)
        problems.append(Problem("hardware.ignore_memory", refusal))
    return spec, forecast


def _refusal(spec: RunSpec, predicted: MemoryForecast, config: Any, device: TargetDevice) -> str:
    place = "the GPU" if device.on_gpu else "this machine"
    reserved = ""
    if predicted.needed_bytes > predicted.peak_bytes:
        size = formatting.size(predicted.needed_bytes)
        reserved = f"for which the allocator reserves {size}; "
    said = (
        f"the run needs {formatting.size(predicted.peak_bytes)} at its peak "
        f"({predicted.peak_phase}), {reserved}{place} has {formatting.size(device.memory_bytes)}. "
    )
    change = smallest_change(spec, config, device)
    if change is None:
        said += "No single change makes it fit; choose a smaller model or a lighter method. "
    else:
        fix, peak = change
        settings = ", ".join(
            f"{key}={value['name'] if isinstance(value, dict) else value}"
            for key, value in fix.changes.items()
        )
        said += (
            f"The smallest change that fits: {fix.title.lower()} ({settings}), "
            f"{formatting.size(peak)}. "
        )
    return said + "Set hardware.ignore_memory to true to start anyway."


def smallest_change(
    spec: RunSpec, config: Any, device: TargetDevice
) -> tuple[memory_savers.MemorySaver, int] | None:
    """The gentlest change, made again if it can be (halved rows, shorter rows), that makes `spec`
    fit by its outline; with its predicted peak."""
    empty = meta_model(config)

    def peak_of(value: dict[str, Any]) -> tuple[MemoryForecast, dict[str, Any]]:
        changed, _ = fit_method(resolve(RunSpec.from_stored(value), device.has_bf16), empty)
        method = methods.get(changed.method["name"])
        how: dict[str, Any] = {"on_gpu": device.on_gpu, "packed": changed.data.packing == "on"}
        limit = device.memory_bytes or 0
        forecast = memory.predict(config, changed, method, memory_bytes=limit, shadow=False, **how)
        # what the allocator reserves is known of a traced step only
        if device.on_gpu and forecast.memory.peak_bytes < (1 + NEAR) * limit:
            forecast = memory.cached(config, changed, method, memory_bytes=limit, **how)
        return forecast.memory, changed.to_json()

    for fix in memory_savers.candidates(spec.to_json(), on_gpu=device.on_gpu):
        changes, value = dict(fix.changes), spec.to_json()
        step: memory_savers.MemorySaver | None = fix
        while step is not None:
            changes |= step.changes
            predicted, value = peak_of(step.apply(value))
            if predicted.fits:
                title = fix.title if changes == fix.changes else fix.title.split(" (")[0]
                saver = memory_savers.MemorySaver(title, changes, fix.keeps_batch)
                return saver, predicted.peak_bytes
            # the same kind of change once more
            again = memory_savers.candidates(value, on_gpu=device.on_gpu)
            step = next((one for one in again if one.changes.keys() == fix.changes.keys()), None)
            if step is not None and step.changes == fix.changes:
                step = None
    return None
