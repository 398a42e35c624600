"""What an attempt ran with: versions, device, seeds."""

from __future__ import annotations

import functools
import os
import platform
from importlib.metadata import version
from typing import Any

from lab import devices, host
from lab.atomic_files import read_object
from lab.paths import ROOT, RunDir
from lab.spec import RunSpec

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "tokenizers")


def environment(spec: RunSpec, device: Any) -> dict[str, Any]:
    """Versions, device and seeds of this attempt."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "v": 1,
        "python": platform.python_version(),
        "packages": dict(package_versions()),
        "cuda": torch.version.cuda,
        "device": name or platform.machine(),
        "gpu": devices.pinned() or None if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "seed": spec.train.seed,
        "git": git_revision(),
        "pid": os.getpid(),
        "host": platform.node(),
    }


@functools.cache
def package_versions() -> dict[str, str]:
    """Of what this process has imported. Read once: pip may replace the files meanwhile."""
    return {package: version(package) for package in PACKAGES}


def git_revision() -> str | None:
    """The commit of this checkout, read from .git without running git."""
    try:
        head = (ROOT / ".git" / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        reference = ROOT / ".git" / head.removeprefix("ref: ")
        return reference.read_text(encoding="utf-8").strip()
    except OSError:
        return None  # an exported copy, or packed references


def changes(before: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Versions, device and threads that differ between two attempts, in words."""
    earlier = before.get("packages", {})
    packages = [
        f"{name} {earlier.get(name)} then, {version} now"
        for name, version in current["packages"].items()
        if earlier.get(name) != version
    ]
    return packages + [
        f"{key} {before.get(key)} then, {current[key]} now"
        for key in ("device", "threads")
        if before.get(key) != current[key]
    ]


def peak_flops(device: Any) -> float | None:
    """The device's peak rate in FLOP/s, None where it is not known."""
    import torch

    on_gpu = device.type == "cuda"
    return host.peak_flops(torch.cuda.get_device_name(device) if on_gpu else "", on_gpu)


def changes_since_last_attempt(run: RunDir) -> str:
    """What is otherwise than in the attempt before: versions, the device; empty if nothing is."""
    folders = sorted(run.attempts.glob("*"), key=lambda path: path.name.zfill(6))
    before = read_object(folders[-1] / "environment.json") if folders else None
    return "" if before is None else "; ".join(changes(before, read_object(run.environment) or {}))
