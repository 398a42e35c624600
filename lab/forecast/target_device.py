"""The device that an estimate is for: this machine's, a card of the table, or a size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab import gpu_table, host
from lab.errors import LabError
from lab.models import catalog as models
from lab.spec import RunSpec

CONTEXT_BYTES = 600_000_000  # of CUDA, on a card that the table does not know
USUAL_FLOPS = 300e12  # dense bf16, of a GPU that the table does not know
DEFAULT_MFU = 0.35  # of a GPU's dense bf16 rate by transformers' own layers, until it is measured


@dataclass(frozen=True)
class TargetDevice:
    """The device that a forecast is for. `memory_bytes`: what a run may take, None without a size.

    `reached`: the share of `flops` (a second) that runs get; `is_measured`: whether finished runs
    of this machine say so.
    """

    on_gpu: bool
    memory_bytes: int | None
    has_bf16: bool = True
    context_bytes: int | None = None
    flops: float = USUAL_FLOPS
    watts: float | None = None
    bandwidth: float | None = None  # bytes a second
    reached: float = DEFAULT_MFU
    is_measured: bool = False
    launching: float = 1.0  # times the usual that a launch takes here
    beside: float = 1.0  # times the predicted time of loading, samples and saving


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
    known = gpu_table.known(gpu.name)
    context = known.context_bytes if known else CONTEXT_BYTES
    return TargetDevice(
        True,
        gpu.memory_bytes - context if all_memory else gpu.free_bytes,
        known.has_bf16 if known else _has_bf16(),
        context,
        known.flops if known else USUAL_FLOPS,
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

    speed = host.processor_flops() or _product_flops()
    memory = psutil.virtual_memory()
    size = size or int(memory.total if all_memory else memory.available)
    return TargetDevice(False, size, False, None, speed)


def _product_flops() -> float:
    """Timed and kept: all predictions rest on one figure, the best of a few occasions."""
    try:
        return host.time_product(seconds=0.2)
    except LabError:  # a full or read-only disk
        return host.product_flops(seconds=0.2)
