"""The device that an estimate is for."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lab import host
from lab.atomic_files import read_object, write_json
from lab.devices import HostGpu
from lab.forecast.finished_runs import with_reached
from lab.forecast.target_device import TargetDevice, this_machine
from lab.paths import RunDir
from tests.answers import estimate

GIB = 2**30
VALUE: dict[str, Any] = {
    "model": "config:SmolLM2-135M",
    "method": "lora",
    "data": {"max_length": 64},
}
CLOSED = {"shadow": False}


def ask(device: dict[str, Any] | None, **train: Any) -> dict[str, Any]:
    return estimate(VALUE | {"train": {"batch_size": 1, **train}}, device, CLOSED)


def test_a_card_of_the_table_has_its_memory_less_the_context() -> None:
    card = ask({"gpu": "T4 16GB"})
    assert card["device_bytes"] == 15 * GIB - 350_000_000
    assert card["context_bytes"] == 350_000_000
    assert card["settings"]["precision"] == "float32", "A T4 has no bf16."
    assert ask({"gpu": "RTX 3090 24GB"})["settings"]["precision"] == "bfloat16"
    sized = ask({"gpu": "T4 16GB", "memory_bytes": 8 * 10**9})
    assert sized["device_bytes"] == 8 * 10**9, "A size that is given counts."


def test_energy_is_watts_over_speed() -> None:
    """A T4 takes 70 W: a million tokens at v tokens a second take 10^6 / v seconds."""
    card = ask({"gpu": "T4 16GB"})
    hours = 1e6 / card["tokens_per_s"] / 3600
    assert card["wh_per_million_tokens"] == pytest.approx(70 * hours, rel=0.01)
    assert ask({"kind": "cuda"})["wh_per_million_tokens"] is None


def test_a_size_alone_is_a_gpu_and_a_kind_is_that_kind() -> None:
    assert ask({"memory_bytes": 10**10})["device"] == "cuda"
    cpu = ask({"kind": "cpu", "memory_bytes": 10**10})
    assert (cpu["device"], cpu["device_bytes"]) == ("cpu", 10**10)
    assert cpu["settings"]["precision"] == "float32" and cpu["context_bytes"] is None
    free = psutil.virtual_memory().available
    assert ask({"kind": "cpu"})["device_bytes"] == pytest.approx(free, rel=0.2)
    none = ask({"kind": "cuda"})
    assert none["device_bytes"] is None and none["fits"] is None


def test_this_machines_gpu_has_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    card = HostGpu(0, "GPU-0", "NVIDIA L4", 24 * 10**9, 7 * 10**9)
    monkeypatch.setattr(host, "gpus", lambda: [card])
    here = ask(None)
    assert (here["device"], here["device_bytes"]) == ("cuda", 7 * 10**9)
    assert here["context_bytes"] == 400_000_000, "That of an L4."
    alone = this_machine(on_gpu=True, all_memory=True)
    assert alone.memory_bytes == 24 * 10**9 - 400_000_000, "what others hold, the queue waits for"


def test_a_config_without_weights_is_meant_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "gpus", list)
    assert ask(None)["device"] == "cuda" and ask(None)["device_bytes"] is None
    assert ask(None, precision="bfloat16")["device"] == "cuda"


def test_only_finished_runs_speak_and_no_gpu_exceeds_its_peak(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "gpus", list)

    def add(name: str, state: str, flops: float, device: str = "cpu") -> None:
        run = RunDir(lab_home / "runs" / f"20261122-101530-lora-{name}")
        run.path.mkdir(parents=True)
        summary = {"flops": flops, "tokens": 2000, "seconds": 20.0}
        write_json(run.result, {"state": state, "summary": summary})
        write_json(run.estimate, {"device": device})

    add("k3f9", "done", 4e12)
    add("k3g0", "failed", 4e13)
    add("k3g1", "stopped", 4e13)
    assert with_reached(TargetDevice(False, 10**9, flops=1e12)).reached == pytest.approx(0.2), (
        "A run that failed says nothing of the speed of one that ends."
    )
    card = HostGpu(0, "GPU-0", "NVIDIA L4", 24 * 10**9, 10**9)
    monkeypatch.setattr(host, "gpus", lambda: [card])
    add("k3g2", "done", 20 * 9e14, device="cuda")
    assert with_reached(TargetDevice(True, 10**9, flops=121e12)).reached == 1.0


def test_bfloat16_that_is_only_emulated_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    card = HostGpu(0, "GPU-0", "Tesla T4", 15 * GIB, 14 * GIB)
    monkeypatch.setattr(host, "gpus", lambda: [card])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert this_machine(on_gpu=True).has_bf16 is False, "the table knows it"
    card = replace(card, name="A card of tomorrow")
    unknown = this_machine(on_gpu=True, all_memory=True)
    assert unknown.has_bf16 is False, "torch was asked without emulation"
    assert unknown.context_bytes == 600_000_000
    assert unknown.memory_bytes == 15 * GIB - 600_000_000
    assert this_machine(on_gpu=True).memory_bytes == 14 * GIB


def test_runs_and_forecasts_know_the_same_cards() -> None:
    for name, tflops in (
        *(("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835)),
        *(("NVIDIA A10G", 70), ("NVIDIA A10", 125), ("NVIDIA L40S", 362), ("NVIDIA L4", 121)),
    ):
        assert host.peak_flops(name, on_gpu=True) == tflops * 1e12, name
    assert host.peak_flops("A card of tomorrow", on_gpu=True) is None


def test_a_busy_moment_does_not_lower_the_speed_of_the_processor(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.machine_file().unlink()
    measured = iter([5e9, 2e9, 7e9, 1e9])
    monkeypatch.setattr(host, "product_flops", lambda seconds: next(measured))
    assert [host.time_product() for _ in range(3)] == [5e9, 5e9, 7e9]
    assert host.peak_flops("", on_gpu=False) == 7e9
    record = read_object(host.machine_file())
    assert record is not None and record["occasions"] == 3
    write_json(host.machine_file(), {"v": 1, "cpu_peak_flops": 9e12, "cores": -1})
    assert host.time_product() == 1e9, "of another machine"


def test_a_processor_that_was_timed_while_it_was_busy_is_timed_again_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host.machine_file().unlink()
    timed = iter([2e9, 8e9, 3e9, 4e9, 5e9, 9e99])
    monkeypatch.setattr(host, "product_flops", lambda seconds: next(timed))
    now = 1e9
    monkeypatch.setattr(host.time, "time", lambda: now)

    def flops() -> float | None:
        return this_machine(on_gpu=False).flops

    assert [flops(), flops()] == [2e9, 2e9], "not twice for one question after another"
    now += host.OCCASION_S
    assert flops() == 8e9
    for _ in range(5):
        now += host.OCCASION_S
        assert flops() == 8e9, "the best one holds, and after five it is not timed any more"
    write_json(host.machine_file(), {"v": 1, "cpu_peak_flops": 1e9, "cores": os.cpu_count()})
    assert flops() == 9e99, "what an earlier lab has kept is timed again, too"
