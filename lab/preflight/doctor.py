"""What will not work on this machine, each with what to do; without loading torch."""

from __future__ import annotations

import importlib.util

from lab.formatting import size
from lab.host import HostFacts
from lab.models import catalog

NEEDED = ("torch", "transformers", "peft")
MIN_DISK_BYTES = 3e9  # bytes: two checkpoints of a full run of the built-in model


def missing() -> list[str]:
    """Packages that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def problems(facts: HostFacts) -> list[str]:
    """Of the machine that `facts` describe."""
    lines = [f"{name} is not installed. Run 'make setup'." for name in missing()]
    if not facts.system.startswith("Linux") or not facts.system.endswith("x86_64"):
        lines.append(
            f"{facts.system} is not supported: the lab is tested on Linux, x86-64. Following "
            "workers (process identity, memory) rests on Linux."
        )
    lines += [
        f"The built-in model {model.title} is not installed. Run 'make setup' once."
        for model in catalog.BUILT_IN
        if not model.is_ready
    ]
    if facts.disk_free_bytes < MIN_DISK_BYTES:
        lines.append(f"Only {size(facts.disk_free_bytes)} of disk are free. Full runs need more.")
    return lines
