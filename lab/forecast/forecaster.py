"""The one forecast of a run on a device: memory, disk, time and speed.

Forms, checks, the search for settings and the command line all get what `forecast` returns.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from lab import formatting
from lab.errors import LabError, Problem, SpecError
from lab.forecast import formula, rules_of_thumb
from lab.forecast.compile_choice import choose_compile
from lab.forecast.finished_runs import with_reached
from lab.forecast.memory_forecast import StepFails, TraceOptions, batch_of
from lab.forecast.model_profile import ModelProfile, profile_model
from lab.forecast.resolve import Resolution
from lab.forecast.runtime_estimate import runtime_forecast, seconds_per_token
from lab.forecast.selective_checkpointing import checkpointed_if_needed
from lab.forecast.stored_forecasts import memory_forecast
from lab.forecast.target_device import TargetDevice
from lab.forecasts import DatasetStats, Forecast, How, MemoryForecast, Speed, StepSettings
from lab.hub.progress import DownloadForecast
from lab.methods import Method
from lab.models import catalog, hub
from lab.spec import RunSpec

TRACED = {
    How.OUTLINE: "outline",
    How.REPEATED_LAYERS: "layer extension",
    How.EVERY_LAYER: "full trace",
}


def forecast(
    resolution: Resolution,
    config: Any,
    device: TargetDevice,
    options: TraceOptions,
    stats: DatasetStats | None = None,
    tokenizer: Any = None,
) -> tuple[RunSpec, Forecast]:
    """(the spec with what was open decided, its forecast).

    `stats`: what is known of the data; with them the time is predicted, and compilation decided.
    `tokenizer`: the model's own, if it is at hand; what trains is counted with it. Raises SpecError
    where a library refuses the method on this model, or its training step fails.
    """
    started = time.perf_counter()
    try:
        profile = profile_model(config, resolution.spec, tokenizer)
        device = with_reached(device)
        spec = resolution.spec
        if stats is not None:
            way, _ = choose_compile(resolution, profile, device, stats, options.rows)
            spec = replace(spec, train=replace(spec.train, compile=way))
        spec, memory = _memory(resolution, spec, config, device, options)
    except ValueError as error:  # a library refuses the combination in its own words
        raise refusal(resolution, error) from None
    launches = memory.launches
    memory = replace(memory, parameters=profile.sizes.parameters, trainable=profile.sizes.trainable)
    kind = rules_of_thumb.kind_of(memory.trainable, memory.parameters, profile.bits)
    notes = _notes(spec, profile, memory)
    token_s = seconds_per_token(spec, profile, device, launches=launches)
    return spec, Forecast(
        memory=memory,
        disk=formula.disk_forecast(profile.sizes, spec),
        runtime=(
            None
            if stats is None
            else runtime_forecast(spec, profile, device, stats, launches, options.rows)
        ),
        speed=Speed(
            round(1 / token_s, 1),
            None if device.watts is None else round(device.watts * token_s * 1e6 / 3600, 3),
        ),
        settings=settings_of(spec, profile.loss, options),
        device="cuda" if device.on_gpu else "cpu",
        device_bytes=device.memory_bytes,
        context_bytes=device.context_bytes,
        rules=rules_of_thumb.rules(memory.parameters, kind, profile.base_parameters),
        notes=(*resolution.notes, *notes),
        seconds=round(time.perf_counter() - started, 3),
        download=_download(spec),
    )


def _memory(
    resolution: Resolution, spec: RunSpec, config: Any, device: TargetDevice, options: TraceOptions
) -> tuple[RunSpec, MemoryForecast]:
    """(the spec, its memory), with activation checkpointing if that was left open and the run does
    not fit without."""
    is_open = "activation_checkpointing" in resolution.is_open
    can_checkpoint = is_open and bool(resolution.method.can_checkpoint_activations)
    if can_checkpoint and device.memory_bytes is not None:
        return checkpointed_if_needed(config, spec, options, device.memory_bytes)
    return spec, memory_forecast(config, spec, options, device.memory_bytes)


def refusal(resolution: Resolution, error: ValueError) -> SpecError:
    """What a library says of a method on a model, and what to do where that is known."""
    method: Method = resolution.method
    message = f"{method.title} cannot be applied: {error}"
    # PEFT's experts, whose weights are no layers
    if "dropout" in message and getattr(resolution.spec.method_config, "dropout", None):
        message = f"{message.rstrip('.')}. Set it to 0 for this model."
        return SpecError([Problem("method.dropout", message)])
    if isinstance(error, StepFails):
        message = f"{method.title} does not work with this model: {error}"
    return SpecError([Problem("method", message)])


def _download(spec: RunSpec) -> DownloadForecast | None:
    """What a run would fetch first; None where nothing can be fetched, or it is not known."""
    try:
        return hub.download_size(catalog.resolve_config(spec.model))
    except LabError:
        return None  # the forecast stands without it; a check says what is wrong


def settings_of(spec: RunSpec, loss: str, options: TraceOptions) -> StepSettings:
    """The settings that the figure rests on."""
    train, batch = spec.train, batch_of(spec, options)
    return StepSettings(
        batch_size=train.batch_size,
        max_length=spec.data.max_length,
        longest_row=batch.longest,
        knows_rows=options.rows is not None,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        precision=train.precision,
        adapter_precision=train.adapter_precision,
        activation_checkpointing=train.activation_checkpointing,
        checkpointed_layers=train.checkpointed_layers,
        loss=loss,
        optimizer=train.optimizer,
        packed=batch.packed,
    )


def _notes(spec: RunSpec, profile: ModelProfile, memory: MemoryForecast) -> tuple[str, ...]:
    """What a person may want to know of the figure; nothing else reads it."""
    notes = []
    if profile.loss != spec.train.loss_implementation:
        notes.append("This architecture post-processes its logits, so the plain loss is used.")
    if profile.sizes.paged_bytes:
        notes.append(
            f"{formatting.size(profile.sizes.paged_bytes)} of paged optimizer states are not in "
            "this figure: CUDA moves them between GPU and CPU memory."
        )
    if profile.assumes_tokens:
        notes.append("The special tokens are those that the config names; no tokenizer was read.")
    if spec.train.compile == "on":
        notes.append(
            "Compiled layers are not traced: the figure is that of layers as they are. On an H100 "
            "they took 18 % less without activation checkpointing, and up to 15 % more with it."
        )
    if memory.trace_error:
        why = memory.trace_error
        notes.append(f"The step could not be traced ({why}). What it needs at least is counted.")
    else:
        notes.append(f"Shadow step, {TRACED[memory.how]}.")
    return tuple(notes)
