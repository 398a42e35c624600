"""The one GPU of each process that computes, chosen by its UUID before CUDA is initialised.

Libraries that see several GPUs spread a model over all of them (transformers' Trainer does), which
the lab's step does not expect. What a person has set in CUDA_VISIBLE_DEVICES is chosen from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from lab.errors import LabError

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class HostGpu:
    """A GPU of this machine, or a MIG part of one. `index` is NVML's own number of the card,
    `speed` orders cards as CUDA does."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    free_bytes: int
    driver: str = ""
    speed: int = 0


def visible(gpus: list[HostGpu], environment: Mapping[str, str]) -> list[HostGpu]:
    """Those of `gpus` (as `host.all_gpus` lists them) that CUDA would show under `environment`.

    An entry is a number in CUDA's order, a UUID or its beginning, or the UUID of a MIG part. CUDA
    stops at the first that names nothing, or a device again.
    """
    visible_devices = environment.get(VISIBLE)
    if visible_devices is None:
        return gpus
    order = _order(gpus, environment.get("CUDA_DEVICE_ORDER", ""))
    chosen: list[HostGpu] = []
    for entry in visible_devices.split(","):
        gpu = _named(entry.strip(), gpus, order)
        if gpu is None or gpu in chosen:
            break
        chosen.append(gpu)
    return chosen


def _named(entry: str, gpus: list[HostGpu], order: list[int]) -> HostGpu | None:
    if entry.isascii() and entry.isdecimal():
        if int(entry) >= len(order):
            return None
        # of a card in parts CUDA takes the first
        return next(gpu for gpu in gpus if gpu.index == order[int(entry)])
    if not entry.upper().startswith(("GPU-", "MIG-")):
        return None
    matches = [gpu for gpu in gpus if gpu.uuid.lower().startswith(entry.lower())]
    return matches[0] if len(matches) == 1 else None


def _order(gpus: list[HostGpu], rule: str) -> list[int]:
    """NVML's numbers of the cards in CUDA's order: by default the fastest one comes first."""
    indices = sorted({gpu.index for gpu in gpus})
    if rule == "PCI_BUS_ID" or not indices:
        return indices
    speeds = {gpu.index: gpu.speed for gpu in gpus}
    fastest = max(indices, key=lambda index: (speeds[index], -index))
    return [fastest, *(index for index in indices if index != fastest)]


def only(uuid: str) -> dict[str, str]:
    """The environment of a process that sees this one device."""
    return {VISIBLE: uuid}


def pinned() -> str:
    """The one device that this process may see, as the environment names it; empty for none or
    several."""
    entries = [entry.strip() for entry in os.environ.get(VISIBLE, "").split(",")]
    return entries[0] if len(entries) == 1 and entries[0] != "-1" else ""


def pin(gpus: list[HostGpu]) -> None:
    """See one of `gpus` (those of `host.gpus()`) at most from now on: the pinned one, or the one
    with most free memory.

    Without effect once CUDA is initialised; call it first.
    """
    text = os.environ.get(VISIBLE)
    if gpus:
        os.environ.update(only(max(gpus, key=lambda gpu: gpu.free_bytes).uuid))
    elif text is None:
        os.environ.update(only("0"))  # no driver that NVML knows: the first, if there is any
    else:
        os.environ.update(only(text.split(",")[0].strip()))


def assert_one() -> None:
    """Raise LabError if torch sees more than one GPU, so that a library would use them all."""
    import torch

    count = torch.cuda.device_count()
    if count > 1:
        raise LabError(
            f"This process sees {count} GPUs, and a run uses one.",
            f"Set {VISIBLE} to one of them before the lab is started.",
        )
