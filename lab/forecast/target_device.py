"""The device that an estimate is for: this machine's, a card of the table, or a size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from lab import gpu_table, host, paths
from lab.atomic_files import number, part, read_object
from lab.checked_run import read_forecast
from lab.errors import LabError
from lab.forecast import runtime_estimate
from lab.forecasts import RuntimeForecast
from lab.models import catalog as models
from lab.spec import RunSpec

MOST_RUNS = 200  # the newest, to learn a machine's pace from
USUAL_FLOPS = 300e12  # dense bf16, of a GPU that the table does not know


@dataclass(frozen=True)
class Target:
    """The device that an estimate is for."""

    on_gpu: bool
    memory_bytes: int | None
    has_bf16: bool = True
    context_bytes: int | None = None
    flops: float = USUAL_FLOPS
    watts: float | None = None
    bandwidth: float | None = None

    def for_pace(self) -> runtime_estimate.Device:
        """With the share of its rate that runs reach on this machine, if that is of its kind."""
        own = host.gpus()
        share, is_measured, runs = runtime_estimate.REACHED, False, []
        if self.on_gpu and own:
            known = gpu_table.known(host.largest(own)["name"])
            runs = _finished("cuda")
            flops = known.flops if known else self.flops
            share, is_measured = runtime_estimate.reached(runs, flops)
        elif not self.on_gpu and not own:
            runs = _finished("cpu")
            share, is_measured = runtime_estimate.reached(runs, self.flops, on_gpu=False)
        if self.on_gpu:
            share = min(share, 1.0)  # of a peak from the maker's data sheet
        return runtime_estimate.Device(
            self.memory_bytes or 0,
            self.flops,
            self.on_gpu,
            share,
            self.watts,
            is_measured,
            self.bandwidth,
            runtime_estimate.launching(runs),
            runtime_estimate.beside(runs),
        )


def target_of(spec: RunSpec, device: dict[str, Any]) -> Target:
    name = device.get("gpu")
    if name:
        gpu = gpu_table.get(name)
        size = device.get("memory_bytes") or gpu.usable_bytes
        return Target(
            True, size, gpu.has_bf16, gpu.context_bytes, gpu.flops, gpu.watts, gpu.bandwidth
        )
    size, kind = device.get("memory_bytes"), device.get("kind")
    if kind == "cuda" or (kind is None and size is not None):
        return Target(True, size)
    if kind == "cpu":
        return _this_processor(size)
    if host.gpus():
        return this_machine(on_gpu=True)
    if spec.train.precision in ("mixed", "bfloat16") or not models.has_weights(spec.model):
        return Target(True, None)  # it cannot be meant for this processor
    return _this_processor(size)


def this_machine(*, on_gpu: bool) -> Target:
    """Its largest GPU with what is free, or its processor."""
    gpus = host.gpus() if on_gpu else []
    if not gpus:
        return _this_processor(None)
    gpu = host.largest(gpus)
    known = gpu_table.known(gpu["name"])
    return Target(
        True,
        gpu["free_bytes"],
        known.has_bf16 if known else True,
        known.context_bytes if known else None,
        known.flops if known else USUAL_FLOPS,
        known.watts if known else None,
        known.bandwidth if known else None,
    )


def _this_processor(size: int | None) -> Target:
    import psutil

    speed = host.peak_flops("", on_gpu=False) or _product_flops()
    return Target(False, size or int(psutil.virtual_memory().available), False, None, speed)


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
