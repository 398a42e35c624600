"""What the worker says about itself: units, peaks, whole lines, and a disk that is full."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from lab.atomic_files import read_object
from lab.paths import RunDir
from lab.runs import record_reader
from lab.train import telemetry
from lab.train.telemetry import PeakMemory, Telemetry


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "20260101-000000-x-abcd")
    run.path.mkdir()
    return run


class Card:
    """NVML as a card without a thermometer offers it: milliwatts, percent, bytes."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return SimpleNamespace(used=3_000_000_000, total=80_000_000_000, free=77_000_000_000)

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        return SimpleNamespace(gpu=87, memory=12)

    def nvmlDeviceGetTemperature(self, handle: Any, which: int) -> int:
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return 312_500


def test_the_cards_figures_are_in_watts_shares_and_bytes() -> None:
    assert telemetry._nvml_record(Card(), None) == {
        "nvml/used_bytes": 3_000_000_000,
        "nvml/utilisation": 0.87,
        "nvml/power_w": 312.5,
    }, "a sensor that is not there is left out"


def test_one_missing_sensor_hides_no_other() -> None:
    class NoMemory(Card):
        def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
            raise self.NVMLError("Not Supported")

        def nvmlDeviceGetTemperature(self, handle: Any, which: int) -> int:
            return 61

    record = telemetry._nvml_record(NoMemory(), None)
    assert record == {"nvml/utilisation": 0.87, "nvml/power_w": 312.5, "nvml/temperature_c": 61}


@pytest.mark.parametrize("name", ["metrics", "events"])
@pytest.mark.parametrize("torn", ['{"v": 1, "kind": "tr', '{"v": 1}', "x"])
def test_the_record_behind_a_torn_line_is_whole(run: RunDir, name: str, torn: str) -> None:
    """A killed worker leaves half a line, or a whole one without its end."""
    file: Path = getattr(run, name)
    file.write_text('{"v": 1, "kind": "eval", "step": 1, "eval/loss": 2.0}\n' + torn)
    worker = Telemetry(run, 2)
    worker.metric("eval", step=2, **{"eval/loss": 1.5})
    worker.event("checkpoint", step=2)
    worker.stop()
    lines = file.read_text().splitlines()
    assert lines[1] == torn, "what was there is left alone"
    assert json.loads(lines[2])["step"] == 2 and len(lines) == 3
    if name == "metrics":
        assert [record["step"] for record in record_reader.metrics(run, "eval")] == [1, 2]


def test_whole_and_missing_files_get_no_empty_line(run: RunDir) -> None:
    run.metrics.write_text('{"v": 1, "kind": "eval", "step": 1}\n')
    worker = Telemetry(run, 1)
    worker.metric("eval", step=2)
    worker.stop()
    assert [len(line) > 5 for line in run.metrics.read_text().split("\n")] == [True, True, False]
    assert run.events.read_text() == ""


def test_a_record_is_on_disk_as_soon_as_it_is_written(run: RunDir) -> None:
    """A worker that is killed the next moment loses nothing."""
    worker = Telemetry(run, 3)
    before = time.time()
    worker.metric("train", step=1, **{"train/loss": float("nan")})
    worker.event("data", examples=5)
    record = json.loads(run.metrics.read_text())
    assert record["attempt"] == 3 and record["kind"] == "train" and record["v"] == 1
    assert record["train/loss"] != record["train/loss"], "NaN stays what it is"
    assert before - 1 <= record["time"] <= time.time() + 1
    assert json.loads(run.events.read_text())["attempt"] == 3
    worker.stop()


def test_a_metric_that_is_no_number_or_not_in_the_table_is_left_out_and_ends_nothing(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = Telemetry(run, 1)
    values = {
        "train/loss": 2.0,
        "train/grad_norm": torch.tensor(1.0),
        "train/mood": 1.0,
        "eval/loss": 1.0,
        "perf/step_s": True,
    }
    for step in (1, 2):
        worker.metric("train", step=step, **values)
    worker.metric("device", phase=3)
    worker.metric("dream", step=1)
    worker.stop()
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [record.get("train/loss") for record in records] == [2.0, 2.0, None, None]
    common = {"v", "kind", "attempt", "time"}
    measured = [set(record) - common for record in records]
    assert measured == [{"step", "train/loss"}, {"step", "train/loss"}, set(), set()]
    warned = [event["message"] for event in record_reader.events(run, "warning")]
    for key, reason in {
        "train/grad_norm": "Tensor and should be a number",
        "train/mood": "not in the table",
        "eval/loss": "of a train record is not in the table",
        "perf/step_s": "bool and should be a number",
        "phase": "int and should be text",
        "step": "of a dream record",
    }.items():
        matches = [message for message in warned if f"'{key}'" in message]
        assert len(matches) == 1 and reason in matches[0], f"{key} is warned of once: {warned}"
    assert len(warned) == 6 == capsys.readouterr().out.count("left out")


def test_a_phase_is_said_once_and_starts_without_progress(run: RunDir) -> None:
    worker = Telemetry(run, 1)
    worker.enter_phase("training")
    worker.progress(3, 12, "step", eta_s=90.04)
    worker._write_heartbeat()
    beat = read_object(run.heartbeat) or {}
    assert (beat["phase"], beat["done"], beat["total"], beat["unit"]) == ("training", 3, 12, "step")
    assert beat["eta_s"] == 90.0, "in seconds"
    worker.enter_phase("training")
    worker.enter_phase("saving")
    beat = read_object(run.heartbeat) or {}
    assert beat["phase"] == "saving" and "eta_s" not in beat
    assert beat["done"] == beat["total"] == 0, "The new phase begins."
    worker.enter_phase("training")
    worker.progress(4, 12, "step")
    worker._write_heartbeat()
    assert "eta_s" not in (read_object(run.heartbeat) or {}), "an old estimate is not repeated"
    assert [event["phase"] for event in record_reader.events(run, "phase")] == [
        "training", "saving", "training",
    ]  # fmt: skip
    worker.stop()


def test_the_longest_silence_of_the_phase_is_told(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time, strftime=time.strftime)
    monkeypatch.setattr(telemetry, "time", clock)
    worker = Telemetry(run, 1)
    worker.enter_phase("training")
    for now[0] in (2.0, 9.5, 10.0):
        worker.sign()
    worker._write_heartbeat()
    beat = read_object(run.heartbeat) or {}
    assert (beat["slowest_s"], beat["signs"]) == (7.5, 4), "a stop waits ten times as long"
    worker.enter_phase("saving")
    assert (read_object(run.heartbeat) or {})["slowest_s"] == 0.0, "another phase, another pace"
    worker.stop()


def test_the_sampler_beats_also_while_the_worker_is_busy(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "SAMPLE_S", 0.02)
    worker = Telemetry(run, 2)
    worker.start(lambda: {"cpu/rss_bytes": 1})
    worker.enter_phase("training")
    worker.seconds = 42.5
    worker.set_sampler(lambda: {"cpu/rss_bytes": 2})
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        records = [
            record
            for record in record_reader.metrics(run, "device")
            if record.get("seconds") == 42.5
        ]
        if any(row["cpu/rss_bytes"] == 2 for row in records):
            break
        time.sleep(0.01)
    worker.stop()
    assert records[-1]["phase"] == "training" and records[-1]["attempt"] == 2
    assert records[-1]["cpu/rss_bytes"] == 2, "the function that was given last is asked"
    assert (read_object(run.heartbeat) or {})["attempt"] == 2
    assert "sampler" not in [thread.name for thread in threading.enumerate()], (
        "it ends with the worker"
    )


def test_a_large_file_on_its_way_is_a_sign_of_life(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tensor file is read or written for minutes, during which the main thread says nothing."""
    before = telemetry.moved_bytes()
    (tmp_path / "large").write_bytes(bytes(3_000_000))
    assert telemetry.moved_bytes() - before >= 3_000_000
    moved, looks = [0], [0]

    def moved_bytes() -> int:
        looks[0] += 1
        return moved[0]

    def wait_for(count: int) -> int:
        end, seen = time.monotonic() + 20, looks[0]
        while looks[0] < seen + count and time.monotonic() < end:
            time.sleep(0.005)
        return int((read_object(run.heartbeat) or {})["signs"])

    monkeypatch.setattr(telemetry, "SAMPLE_S", 0.01)
    monkeypatch.setattr(telemetry, "moved_bytes", moved_bytes)
    worker = Telemetry(run, 1)
    worker.start(dict)
    moved[0] = telemetry.BUSY_BYTES
    assert wait_for(3) == 0, "records alone are none"
    moved[0] += telemetry.BUSY_BYTES + 1
    assert wait_for(3) == 1
    worker.stop()


@pytest.mark.parametrize(("pinned", "uuid"), [("GPU-1", b"GPU-ab"), ("MIG-p1", b"MIG-p1")])
def test_the_figures_are_those_of_the_card_that_the_run_has(
    pinned: str, uuid: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted: list[bytes] = []

    class Nvml(Card, ModuleType):
        def nvmlInit(self) -> None:
            if not pinned:
                raise self.NVMLError("Driver Not Loaded")

        def nvmlDeviceGetHandleByUUID(self, name: bytes) -> str:
            wanted.append(name)
            return "handle"

    nvml = Nvml("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(telemetry.devices, "pinned", lambda: pinned)
    properties = SimpleNamespace(uuid="ab")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert telemetry._nvml_handle() == ("handle", nvml) and wanted == [uuid]
    pinned = ""
    assert telemetry._nvml_handle() == (None, None), "a driver without it ends no run"
    assert "no power and temperature: Driver Not Loaded" in capsys.readouterr().out


def test_a_full_disk_is_told_once_and_stops_nothing(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = Telemetry(run, 1)

    class Full:
        number = 28

        def write(self, data: bytes) -> None:
            raise OSError(self.number, os.strerror(self.number))

    worker._metrics.close()
    worker._metrics = full = Full()
    for _ in range(3):
        worker.metric("train", step=1)
    full.number = 5
    worker.metric("train", step=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "cannot write" in line]
    assert len(lines) == 2 and "No space left" in lines[0] and "Input/output" in lines[1]


def test_peaks_are_the_highest_of_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([500, 900, 700, 800])
    resets: list[Any] = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    memory = PeakMemory(SimpleNamespace(type="cuda"))
    for phase in ("forward", "backward", "forward", "backward"):
        memory.end_phase(phase)
    assert memory.peaks == {"forward": 700, "backward": 900}
    assert len(resets) == 4, "each phase is measured from its own start"
    assert memory.peak_bytes == 900, "of the card, not of the host"


def test_resident_memory_is_what_the_system_says() -> None:
    process = psutil.Process()
    now = telemetry.resident_bytes()
    assert now == pytest.approx(process.memory_info().rss, rel=0.1)
    block = bytearray(os.urandom(1 << 16) * 1600)  # 100 MiB that are really there
    memory = PeakMemory(torch.device("cpu"))
    memory.end_phase("load")
    held = memory.peaks["load"]
    assert held >= now + 80_000_000
    del block
    highest = telemetry.resident_peak_bytes()
    assert highest >= held * 0.99, "the high-water mark stays when memory is given back"
    assert memory.peak_bytes == telemetry.resident_peak_bytes()
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    assert highest == int(line.split()[1]) * 1024, "kilobytes of 1024 bytes"


def test_sizes_of_weights_gradients_and_moments() -> None:
    tied = torch.nn.Parameter(torch.zeros(10, 4))
    frozen = torch.nn.Parameter(torch.zeros(5, dtype=torch.bfloat16), requires_grad=False)
    model = torch.nn.Module()
    model.a, model.b, model.c = tied, tied, frozen
    optimizer = torch.optim.SGD([tied], lr=0.1, momentum=0.9)
    tied.grad = torch.ones_like(tied)
    optimizer.step()
    sizes = telemetry.tensor_bytes(model, SimpleNamespace(optimizer=optimizer))
    assert sizes == {"weights": 160 + 10, "gradients": 160, "optimizer": 160, "paged": 0}
    optimizer.state[tied]["momentum_buffer"].is_paged = True  # as bitsandbytes marks them
    sizes = telemetry.tensor_bytes(model, optimizer, [torch.zeros(3), torch.zeros(2)])
    assert (sizes["optimizer"], sizes["paged"]) == (20, 160), "the method's scores, no paged moment"


def test_a_processors_record_has_no_figures_of_a_card(run: RunDir) -> None:
    record = telemetry.device_stats_reader(run, uses_gpu=False)()
    assert set(record) == {"cpu/rss_bytes"}
    assert record["cpu/rss_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
