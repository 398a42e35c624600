"""Data sheet of common GPUs: memory, bandwidth, FLOP/s, and CUDA context size.

Memory is what the driver shows (GiB on the box, less what the driver keeps for itself), bandwidth
and dense bf16 rates are from the makers' data sheets; where a card has no bf16, its fp16 rate.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from lab.errors import LabError
from lab.schema import quote

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """One card. `context_bytes`: CUDA's context with torch's kernels, outside the allocator."""

    name: str
    memory_bytes: int
    bandwidth: float  # bytes a second
    flops: float  # dense bf16, a second
    context_bytes: int
    watts: float
    year: int
    has_bf16: bool = True

    @property
    def usable_bytes(self) -> int:
        """What the allocator can have."""
        return self.memory_bytes - self.context_bytes

    @property
    def label_gb(self) -> float:
        """What its box says, as people and rules of thumb speak of it."""
        return float(self.name.rsplit(" ", 1)[1].removesuffix("GB"))


def _gpu(
    name: str,
    gib: float,
    gb_s: float,
    tflops: float,
    watts: float,
    year: int,
    context: float = 0.5,
    has_bf16: bool = True,
) -> Gpu:
    return Gpu(
        name, int(gib * GIB), gb_s * 1e9, tflops * 1e12, int(context * 1e9), watts, year, has_bf16
    )


GPUS = (
    _gpu("T4 16GB", 15.0, 320, 65, 70, 2018, 0.35, has_bf16=False),
    _gpu("V100 16GB", 15.8, 900, 125, 300, 2017, 0.4, has_bf16=False),
    _gpu("V100 32GB", 31.7, 900, 125, 300, 2018, 0.4, has_bf16=False),
    _gpu("RTX 3060 12GB", 11.8, 360, 51, 170, 2021, 0.35),
    _gpu("RTX 3090 24GB", 23.7, 936, 71, 350, 2020, 0.4),
    _gpu("RTX 4060 Ti 16GB", 15.6, 288, 88, 165, 2023, 0.4),
    _gpu("RTX 4070 12GB", 11.7, 504, 117, 200, 2023, 0.4),
    _gpu("RTX 4080 16GB", 15.6, 717, 195, 320, 2022, 0.4),
    _gpu("RTX 4090 24GB", 23.6, 1008, 165.2, 450, 2022, 0.45),
    _gpu("RTX 5080 16GB", 15.5, 960, 112, 360, 2025, 0.5),
    _gpu("RTX 5090 32GB", 31.4, 1792, 209.5, 575, 2025, 0.55),
    _gpu("A10 24GB", 22.0, 600, 125, 150, 2021, 0.4),
    _gpu("A10G 24GB", 22.0, 600, 70, 300, 2021, 0.4),
    _gpu("L4 24GB", 22.0, 300, 121, 72, 2023, 0.4),
    _gpu("RTX A6000 48GB", 47.5, 768, 155, 300, 2020, 0.4),
    _gpu("L40S 48GB", 44.7, 864, 362, 350, 2023, 0.45),
    _gpu("A100 40GB", 39.4, 1555, 312, 400, 2020, 0.45),
    _gpu("A100 80GB", 79.2, 2039, 312, 400, 2021, 0.45),
    # 744 MB measured on an H100 80GB once it has multiplied (torch 2.11, CUDA 13.0)
    _gpu("H100 PCIe 80GB", 79.2, 2000, 756, 350, 2022, 0.75),
    _gpu("H100 80GB", 79.2, 3350, 989, 700, 2022, 0.75),
    _gpu("H100 NVL 94GB", 93.6, 3938, 835, 400, 2023, 0.75),
    _gpu("H200 141GB", 139.8, 4800, 989, 700, 2024, 0.75),
    _gpu("B200 180GB", 178.3, 7700, 2250, 1000, 2024, 0.65),
)


def get(name: str) -> Gpu:
    """The card of that name. Raises LabError with the nearest names."""
    names = {gpu.name.lower(): gpu for gpu in GPUS}
    if name.lower() in names:
        return names[name.lower()]
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.3)
    choices = ", ".join(names[key].name for key in near) or ", ".join(gpu.name for gpu in GPUS)
    raise LabError(f"Unknown GPU '{quote(name)}'.", f"Choose one of: {choices}.")


def known(name: str) -> Gpu | None:
    """The card of the table that a driver's name such as "NVIDIA H100 80GB HBM3" means."""
    words = name.lower()
    fitting = [gpu for gpu in GPUS if gpu.name.rsplit(" ", 1)[0].lower() in words]
    return max(fitting, key=lambda gpu: len(gpu.name), default=None)


def holding(need_bytes: int) -> list[Gpu]:
    """The cards that hold `need_bytes` beside CUDA's context, the smallest first; of equal ones the
    older."""
    cards = [gpu for gpu in GPUS if gpu.usable_bytes >= need_bytes]
    return sorted(cards, key=lambda gpu: (gpu.label_gb, gpu.year))
