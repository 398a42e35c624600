"""Facts about this machine: CPU, memory, GPUs, and its peak matrix-multiply rate."""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import devices, gpu_table, paths
from lab.atomic_files import finite_number, read_object, write_json
from lab.devices import HostGpu
from lab.errors import LabError


@dataclass(frozen=True)
class HostFacts:
    """This machine; `cores` are those that this process may use. A dataclass that is JSON as it
    is, by `asdict`."""

    system: str  # such as "Linux 6.1.0 x86_64"
    python: str
    processor: str
    cores: int
    memory_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int  # where LAB_HOME is, or will be
    home: str
    gpus: tuple[HostGpu, ...] = ()


def machine_file() -> Path:
    return paths.home() / "machine.json"


def describe() -> HostFacts:
    """Processors, memory, disk and GPUs, without loading torch."""
    import psutil

    home = paths.home()
    existing = next(folder for folder in [home, *home.parents] if folder.exists())
    disk = shutil.disk_usage(existing)
    return HostFacts(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        memory_free_bytes=psutil.virtual_memory().available,
        disk_free_bytes=disk.free,
        home=str(home),
        gpus=tuple(gpus()),
    )


def gpus() -> list[HostGpu]:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES lets this process use; empty without a driver."""
    return devices.visible(all_gpus(), os.environ)


def all_gpus() -> list[HostGpu]:
    """Every NVIDIA GPU as NVML sees it, one that is cut into MIG parts as these; empty without a
    driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    cards = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        for handle in _parts(pynvml, card) or [card]:
            memory = _memory(pynvml, handle)
            cards.append(
                HostGpu(
                    index,
                    _text(pynvml.nvmlDeviceGetUUID(handle)),
                    _text(pynvml.nvmlDeviceGetName(handle)),
                    *memory,
                    pynvml.nvmlSystemGetDriverVersion(),
                    _speed(pynvml, card),
                )
            )
    pynvml.nvmlShutdown()
    return cards


def _memory(nvml: Any, handle: Any) -> tuple[int, int]:
    """(bytes that CUDA can have, free bytes): the driver keeps some for itself, half a GB on an
    H100, which the plain total includes."""
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        reserved = int(info.reserved)
    except (nvml.NVMLError, AttributeError, TypeError):  # an older driver, or an older binding
        info, reserved = nvml.nvmlDeviceGetMemoryInfo(handle), 0
    return int(info.total) - reserved, int(info.free)


def _parts(nvml: Any, card: Any) -> list[Any]:
    """The MIG parts of a card; none where it is whole."""
    try:
        if not nvml.nvmlDeviceGetMigMode(card)[0]:
            return []
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(card)
    except nvml.NVMLError:
        return []
    parts = []
    for i in range(count):
        try:
            parts.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, i))
        except nvml.NVMLError:
            continue  # no part there
    return parts


def _speed(nvml: Any, card: Any) -> int:
    try:
        clock = nvml.nvmlDeviceGetMaxClockInfo(card, nvml.NVML_CLOCK_SM)
        return int(nvml.nvmlDeviceGetNumGpuCores(card) * clock)
    except nvml.NVMLError:
        return 0


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def largest(gpus: list[HostGpu]) -> HostGpu:
    """The GPU with most memory: a run that needs it waits for it."""
    return max(gpus, key=lambda gpu: gpu.memory_bytes)


def gpu_bytes_of(pids: list[int]) -> int:
    """GPU memory that these processes hold, in bytes; 0 without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    used_bytes = 0
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid in pids:
                used_bytes += int(process.usedGpuMemory or 0)
    pynvml.nvmlShutdown()
    return used_bytes


OCCASIONS, OCCASION_S = 5, 30.0  # on which a processor is timed, and seconds between two of them


def peak_flops(device_name: str, on_gpu: bool) -> float | None:
    """Peak FLOP/s of the device: a GPU's from its data sheet, a CPU's as `doctor` timed it."""
    if on_gpu:
        gpu = gpu_table.known(device_name)
        return gpu.flops if gpu else None
    measured = (read_object(machine_file()) or {}).get("cpu_peak_flops")
    return float(measured) if isinstance(measured, (int, float)) else None


def processor_flops() -> float | None:
    """Peak FLOP/s of the processor as it is kept; None where it is to be timed: before the first
    time, and at later ones until OCCASIONS have been tried, since a busy moment only lowers it."""
    record = read_object(machine_file()) or {}
    times, last = (finite_number(record.get(key)) or 0.0 for key in ("occasions", "time"))
    is_due = times < OCCASIONS and not 0 <= time.time() - last < OCCASION_S
    return None if is_due else peak_flops("", on_gpu=False)


def time_product(seconds: float = 1.0) -> float:
    """As `product_flops`, or what was measured before where that is more, since other work on the
    machine only lowers it; kept in LAB_HOME/machine.json, where runs find it."""
    flops, occasions = product_flops(seconds=seconds), 0.0
    before = read_object(machine_file()) or {}
    if before.get("cores") == os.cpu_count():
        flops = max(flops, finite_number(before.get("cpu_peak_flops")) or 0.0)
        occasions = finite_number(before.get("occasions")) or 0.0
    record = {"v": 1, "cpu_peak_flops": flops, "cores": os.cpu_count()}
    try:
        paths.make_folder(machine_file().parent)
        write_json(machine_file(), {**record, "occasions": occasions + 1, "time": time.time()})
    except OSError as error:
        raise LabError(f"{machine_file()} cannot be written: {error}.", "Check LAB_HOME.") from None
    return flops


def product_flops(size: int = 1024, seconds: float = 1.0) -> float:
    """FLOP/s of the best float32 product of two (size, size) matrices within `seconds`."""
    import torch

    left, right = torch.randn(size, size), torch.randn(size, size)
    torch.mm(left, right)
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
