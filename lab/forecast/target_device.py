"""The device that an estimate is for: this machine's, a card of the table, or a size."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from lab import gpu_table, host, paths
from lab.atomic_files import number, part, read_object
from lab.checked_run import read_forecast
from lab.errors import LabError
from lab.forecast import runtime_estimate
from lab.forecast.runtime_estimate import TargetDevice
from lab.forecasts import RuntimeForecast
from lab.models import catalog as models
from lab.spec import RunSpec

MOST_RUNS = 200  # the newest, to learn a machine's pace from


CONTEXT_BYTES = 600_000_000  # of CUDA, on a card that the table does not know


def with_reached(device: TargetDevice) -> TargetDevice:
    """With what this machine's runs reach, if it is of their kind."""
    gpus = host.gpus()
    share, is_measured, runs = runtime_estimate.REACHED, False, []
    if device.on_gpu and gpus:
        known = gpu_table.known(host.largest(gpus)["name"])
        runs = _finished("cuda")
        flops = known.flops if known else device.flops
        share, is_measured = runtime_estimate.reached(runs, flops)
    elif not device.on_gpu and not gpus:
        runs = _finished("cpu")
        share, is_measured = runtime_estimate.reached(runs, device.flops, on_gpu=False)
    if device.on_gpu:
        share = min(share, 1.0)  # of a peak from the maker's data sheet
    return replace(
        device,
        reached=share,
        is_measured=is_measured,
        launching=runtime_estimate.launching(runs),
        beside=runtime_estimate.beside(runs),
    )


def target_of(spec: RunSpec, device: dict[str, Any]) -> TargetDevice:
    name = device.get("gpu")
    if name:
        gpu = gpu_table.get(name)
        size = device.get("memory_bytes") or gpu.usable_bytes
        return TargetDevice(
            True, size, gpu.has_bf16, gpu.context_bytes, gpu.flops, gpu.watts, gpu.bandwidth
        )
    size, kind = device.get("memory_bytes"), device.get("kind")
    if kind == "cuda" or (kind is None and size is not None):
        return TargetDevice(True, size)
    if kind == "cpu":
        return _this_processor(size)
    if host.gpus():
        return this_machine(on_gpu=True)
    if spec.train.precision in ("mixed", "bfloat16") or not models.has_weights(spec.model):
        return TargetDevice(True, None)  # it cannot be meant for this processor
    return _this_processor(size)


def this_machine(*, on_gpu: bool, all_memory: bool = False) -> TargetDevice:
    """Its largest GPU, or its processor: with what is free, or with all that a run could have when
    nothing else runs."""
    gpus = host.gpus() if on_gpu else []
    if not gpus:
        return _this_processor(None, all_memory=all_memory)
    gpu = host.largest(gpus)
    known = gpu_table.known(gpu["name"])
    context = known.context_bytes if known else CONTEXT_BYTES
    return TargetDevice(
        True,
        gpu["memory_bytes"] - context if all_memory else gpu["free_bytes"],
        known.has_bf16 if known else _has_bf16(),
        context,
        known.flops if known else runtime_estimate.USUAL_FLOPS,
        known.watts if known else None,
        known.bandwidth if known else None,
    )


def _has_bf16() -> bool:
    """Whether this machine's GPU multiplies in bfloat16 itself: emulated, it is slower than
    float32."""
    import torch

    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def _this_processor(size: int | None, *, all_memory: bool = False) -> TargetDevice:
    import psutil

    speed = host.peak_flops("", on_gpu=False) or _product_flops()
    memory = psutil.virtual_memory()
    size = size or int(memory.total if all_memory else memory.available)
    return TargetDevice(False, size, False, None, speed)


@cache
def _product_flops() -> float:
    """Timed and kept where `doctor` kept nothing: all predictions rest on one figure."""
    try:
        return host.time_product(seconds=0.2)
    except LabError:  # a full or read-only disk
        return host.product_flops(seconds=0.2)


def _finished(kind: str) -> list[tuple[dict[str, Any], RuntimeForecast | None]]:
    """(summary, predicted time) of the finished runs of this machine on its `kind` of device."""
    runs = []
    for run in paths.all_runs()[:MOST_RUNS]:
        result = read_object(run.result) or {}
        summary = part(result, "summary")
        if result.get("state") != "done" or not _has(summary, "seconds", "flops", "tokens"):
            continue
        forecast = read_forecast(run)
        begun, ended = number(result.get("started")), number(result.get("ended"))
        if begun and ended:
            summary = {**summary, "beside_s": ended - begun - summary["seconds"]}
        if forecast.device == kind:
            runtime = forecast.runtime
            runs.append((summary, runtime if runtime and runtime.is_complete else None))
    return runs


def _has(stored: dict[str, Any], *names: str) -> bool:
    """Whether these are numbers of a stored object, which may hold anything."""
    return all(number(stored.get(name)) is not None for name in names)
