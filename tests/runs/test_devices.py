"""One GPU for each worker: which are visible, which is chosen, and what the worker then sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import devices, host, paths, process
from lab.atomic_files import read_object, write_json
from lab.devices import HostGpu
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions, chat_memory, queue, supervisor, supervisor_start, warm_worker

GB = 10**9


def gpu(index: int, free: int = 20, uuid: str = "", speed: int = 100) -> HostGpu:
    uuid = uuid or f"GPU-{index}{index}aa-bb"
    return HostGpu(index, uuid, "Card", 24 * GB, free * GB, "1", speed)


THREE = [gpu(0, free=4), gpu(1, free=20), gpu(2, free=12)]
PARTS = [gpu(0), gpu(1, uuid="MIG-p1"), gpu(1, uuid="MIG-p2"), gpu(2, speed=900)]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the machine has these cards, with CUDA_VISIBLE_DEVICES as said."""

    def have(gpus: list[HostGpu], visible: str | None = None) -> None:
        monkeypatch.setattr(host, "all_gpus", lambda: gpus)
        monkeypatch.setattr(host, "gpu_bytes_of", lambda pids: 0)
        monkeypatch.setenv(devices.VISIBLE, visible or "")  # so that it is put back, whatever pins
        if visible is None:
            monkeypatch.delenv(devices.VISIBLE)

    return have


@pytest.mark.parametrize(
    ("gpus", "visible", "order", "seen"),
    [
        (THREE, None, "", ["GPU-00aa-bb", "GPU-11aa-bb", "GPU-22aa-bb"]),
        (THREE, "", "", []),
        (THREE, "-1", "", []),
        (THREE, "2,0", "", ["GPU-22aa-bb", "GPU-00aa-bb"]),
        (THREE, "1,7,0", "", ["GPU-11aa-bb"]),
        (THREE, "1,1", "", ["GPU-11aa-bb"]),
        (THREE, " GPU-22 , 0", "", ["GPU-22aa-bb", "GPU-00aa-bb"]),
        (THREE, "gpu-22AA-bb", "", ["GPU-22aa-bb"]),
        (THREE, "GPU-", "", []),
        (THREE, "GPU-99", "", []),
        (PARTS, "MIG-p2,GPU-00", "", ["MIG-p2", "GPU-00aa-bb"]),
        (PARTS, "1", "PCI_BUS_ID", ["MIG-p1"]),
        (PARTS, "0", "", ["GPU-22aa-bb"]),  # the fastest card is CUDA's first
        (PARTS, "0", "PCI_BUS_ID", ["GPU-00aa-bb"]),
        ([], "0,1", "", []),
    ],
)
def test_what_cuda_would_show(
    gpus: list[HostGpu], visible: str | None, order: str, seen: list[str]
) -> None:
    environment = {"CUDA_DEVICE_ORDER": order}
    if visible is not None:
        environment[devices.VISIBLE] = visible
    assert [gpu.uuid for gpu in devices.visible(gpus, environment)] == seen


@pytest.mark.parametrize(
    ("gpus", "visible", "chosen"),
    [
        (THREE, None, "GPU-11aa-bb"),
        (THREE, "0,2", "GPU-22aa-bb"),
        (THREE, "GPU-00", "GPU-00aa-bb"),
        (THREE, "", ""),
        ([], None, "0"),
        ([], "MIG-x,MIG-y", "MIG-x"),
        ([], "3,2", "3"),
    ],
)
def test_a_worker_started_by_hand_takes_the_roomiest_of_what_it_may_see(
    cards: Callable[..., None], gpus: list[HostGpu], visible: str | None, chosen: str
) -> None:
    cards(gpus, visible)
    devices.pin(host.gpus())
    assert os.environ[devices.VISIBLE] == chosen
    devices.pin(host.gpus())
    assert os.environ[devices.VISIBLE] == chosen, "pinning again changes nothing"


def running(run_id: str, uuid: str | None, peak: int) -> RunDir:
    run = RunDir(paths.runs() / run_id)
    run.path.mkdir(parents=True)
    write_json(run.estimate, {"peak_bytes": peak * GB})
    process.register(run, os.getpid(), uuid)
    return run


def test_room_is_counted_on_the_device_that_each_run_has(cards: Callable[..., None]) -> None:
    cards(THREE)
    assert supervisor.room_for_a_run([]) == ("GPU-11aa-bb", 20 * GB)
    first = running("20260101-000000-lora-aaaa", "GPU-11aa-bb", peak=15)
    assert supervisor.room_for_a_run([first]) == ("GPU-22aa-bb", 12 * GB), (
        "what the first run will still take is not free on its own card, and is on another"
    )
    second = running("20260101-000000-lora-bbbb", "GPU-22aa-bb", peak=11)
    assert supervisor.room_for_a_run([first, second]) == ("GPU-11aa-bb", 5 * GB)
    cards(THREE, "0")
    assert supervisor.room_for_a_run([first, second]) == ("GPU-00aa-bb", 4 * GB)


def test_what_a_run_has_taken_on_its_gpu_is_no_longer_to_come(
    cards: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(THREE)
    run = running("20260101-000000-lora-aaaa", "GPU-11aa-bb", peak=15)
    monkeypatch.setattr(host, "gpu_bytes_of", lambda pids: 14 * GB)
    assert supervisor.room_for_a_run([run]) == ("GPU-11aa-bb", 19 * GB)


@pytest.fixture
def show_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[], dict[str, Any]]:
    """In place of a worker, a process that writes down what it sees; the file's contents."""
    file = tmp_path / "seen.json"
    code = (
        "import json, os, sys, pathlib; sys.stdin.read(); aside = pathlib.Path(sys.argv[1] + '~'); "
        "aside.write_text(json.dumps([os.environ.get('CUDA_VISIBLE_DEVICES'), os.getpid()])); "
        "aside.rename(sys.argv[1])"
    )
    start = subprocess.Popen

    def instead(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert command[:3] == [sys.executable, "-m", "lab.train"]
        return start([sys.executable, "-c", code, str(file)], **options)

    monkeypatch.setattr(process.subprocess, "Popen", instead)

    def seen() -> dict[str, Any]:
        end = time.monotonic() + 30
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.02)
        visible, pid = json.loads(file.read_text())
        file.unlink()
        return {"visible": visible, "pid": pid}

    return seen


def waiting(run_id: str) -> RunDir:
    run = RunDir(paths.runs() / run_id)
    run.path.mkdir(parents=True)
    write_json(run.spec, {"v": 1})
    write_json(run.estimate, {"peak_bytes": GB})
    actions.submit(run)
    return run


@pytest.mark.parametrize(
    ("visible", "chosen"),
    [(None, "GPU-11aa-bb"), ("2,0", "GPU-22aa-bb"), ("GPU-00", "GPU-00aa-bb")],
)
def test_the_supervisor_starts_a_worker_that_sees_one_gpu(
    cards: Callable[..., None],
    show_environment: Callable[[], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    chosen: str,
) -> None:
    cards(THREE, visible)
    monkeypatch.setattr(supervisor_start, "ensure", lambda: None)
    run = waiting("20260101-000000-lora-aaaa")
    loop = supervisor.Supervisor()
    loop.tick()
    seen = show_environment()
    record = read_object(run.process) or {}
    assert seen["visible"] == chosen, "the worker's own environment names one device"
    assert record["pid"] == seen["pid"] and record["gpu"] == chosen, "and it is written down"


def test_a_spare_worker_does_only_a_run_on_its_own_device(
    cards: Callable[..., None], show_environment: Callable[[], dict[str, Any]]
) -> None:
    queue.folder().mkdir(parents=True)
    run = RunDir(paths.runs() / "20260101-000000-lora-aaaa")
    run.path.mkdir(parents=True)
    held = warm_worker.WarmWorker()
    held.start("GPU-11aa-bb")
    assert held.assign(run, "GPU-22aa-bb") is None and held.worker is None, "let go, not used"
    assert show_environment()["visible"] == "GPU-11aa-bb", "it was pinned when it was started"
    held.start("GPU-22aa-bb")
    worker = held.assign(run, "GPU-22aa-bb")
    assert worker is not None and (read_object(run.process) or {})["gpu"] == "GPU-22aa-bb"
    worker.wait(timeout=30)


def test_a_worker_that_sees_several_gpus_ends_with_a_clear_message(
    make_spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(LabError, match="sees 2 GPUs, and a run uses one"):
        devices.assert_one()
    from tests.answers import checked
    from tests.conftest import attempt_here

    run = actions.create_run_dir(
        checked(make_spec("lora", train={"max_steps": 1, "save_steps": 0}))
    )
    assert attempt_here(run) == 1
    assert "sees 2 GPUs" in (read_object(run.result) or {})["message"]


def test_the_process_of_a_worker_pins_itself_before_anything_else(tmp_path: Path) -> None:
    """A real `python -m lab.train`, started by hand, with the list of cards put in its way."""
    (tmp_path / "sitecustomize.py").write_text(
        "import lab.host as m, json, os, atexit\n"
        "from lab.devices import HostGpu\n"
        f"m.all_gpus = lambda: {THREE!r}\n"
        "atexit.register(lambda: print('SEES', os.environ['CUDA_VISIBLE_DEVICES'], flush=True))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{paths.ROOT}"}
    environment.pop(devices.VISIBLE, None)
    worker = subprocess.run(
        [sys.executable, "-m", "lab.train", "--spare"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        cwd=paths.ROOT,
        timeout=120,
    )
    assert "SEES GPU-11aa-bb" in worker.stdout, worker.stderr


def test_a_chat_process_without_a_model_holds_no_memory_that_a_run_could_use(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA alone takes some; a process that is gone takes none."""
    used = 0
    monkeypatch.setattr(host, "gpu_bytes_of", lambda pids: used if pids == [os.getpid()] else 0)
    assert chat_memory.held_bytes(on_gpu=True) == 0, "Nobody has chatted yet."
    paths.make_folder(lab_home / "chat")
    identity = process.identity(os.getpid()) or {}
    for used, is_alive, held in ((GB, True, GB), (40_000_000, True, 0), (GB, False, 0)):
        started = identity["start"] - (not is_alive)
        write_json(lab_home / "chat" / "process.json", identity | {"start": started})
        assert chat_memory.held_bytes(on_gpu=True) == held, (used, is_alive)


@pytest.mark.parametrize("knows_reserved", [True, False], ids=["newer driver", "older driver"])
def test_what_the_driver_keeps_for_itself_is_no_memory_of_the_card(knows_reserved: bool) -> None:
    """As read on an H100: NVML's total is half a GB more than CUDA can have."""

    class Nvml:
        nvmlMemory_v2 = 2

        class NVMLError(Exception):
            pass

        def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
            if version is None:
                return SimpleNamespace(total=85_520_809_984, free=84_263_763_968)
            if not knows_reserved:
                raise self.NVMLError("Function Not Found")
            assert version == self.nvmlMemory_v2
            return SimpleNamespace(total=85_520_809_984, free=84_263_763_968, reserved=503_316_480)

    total = 85_017_493_504 if knows_reserved else 85_520_809_984
    assert host._memory(Nvml(), None) == (total, 84_263_763_968)
