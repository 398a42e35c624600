"""Memory that the chat process of this home holds, which a waiting run may need."""

from __future__ import annotations

import os
from typing import Any

from lab import host, paths, process
from lab.atomic_files import read_object

HOLDS = "the chat holds"  # in why a run waits: pages then offer to free it
SMALL = 50_000_000  # bytes that a process without a model has on a GPU, or less


def held_bytes(*, on_gpu: bool) -> int:
    """Bytes that the chat process has on the GPUs, or of this machine's memory; 0 without one."""
    record = read_object(paths.home() / "chat" / "process.json") or {}
    if not process.is_alive(record):
        return 0
    pid = int(record["pid"])
    used = host.gpu_bytes_of([pid]) if on_gpu else resident_bytes(pid)
    return used if used > SMALL else 0


def resident_bytes(pid: Any) -> int:
    """What a process has of this machine's memory; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
