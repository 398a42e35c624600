"""Forecasts that need no planner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import gpu_table
from lab.advise import options
from lab.advise.rules import Approach
from lab.compare import evidence
from lab.forecasts import DiskForecast, Forecast, How, MemoryForecast, Parts, Speed

NEED_GB = {Approach.FULL: 60.0, Approach.LORA: 16.0, Approach.QLORA: 6.0}  # of a 7B model
TOKENS_PER_S = {Approach.FULL: 1000.0, Approach.LORA: 1300.0, Approach.QLORA: 1200.0}
ROOM_BYTES = {"gpu": 24_890_000_000}


def forecast_of(spec: dict[str, Any], device: dict[str, Any]) -> Forecast:
    """As the planner answers, from a table."""
    approach = {each.value: each for each in NEED_GB}.get(spec["method"]["name"], Approach.LORA)
    room = device.get("memory_bytes") or (options._room_of(device) if "gpu" in device else None)
    need = int(NEED_GB[approach] * 1e9) + (spec["train"]["batch_size"] - 1) * 1_000_000_000
    if "gpu" in device and not gpu_table.get(device["gpu"]).has_bf16:
        need *= 2  # float32
    memory = MemoryForecast(
        parameters=7_000_000_000,
        trainable=40_000_000,
        largest=Parts(weights=14, activations=7),
        peak_bytes=need,
        fits=None if room is None else need <= room,
        how=How.OUTLINE,
    )
    return Forecast(
        memory,
        disk=DiskForecast(artifact=80_000_000, checkpoint=580_000_000, total=3_000_000_000),
        speed=Speed(TOKENS_PER_S[approach], 30.0),
        device="cuda",
        device_bytes=room,
    )


@pytest.fixture
def no_planner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Forecast]:
    monkeypatch.setattr(options, "estimate", forecast_of)
    return forecast_of


@pytest.fixture(autouse=True)
def no_shipped_evidence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What comes with the lab changes with every race; tests bring their own."""
    monkeypatch.setattr(evidence, "shipped_folder", lambda: tmp_path / "no-evidence")
