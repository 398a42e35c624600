"""What the worker says about itself: metrics, events, the heartbeat, and a sampler thread.

One lock guards both files; every record is one write of one line, so a killed worker loses at
most the record it was writing. The sampler writes once a second, also inside a long step.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from lab import devices, metrics
from lab.atomic_files import write_atomic
from lab.paths import RunDir
from lab.runs.heartbeat import Heartbeat

VERSION = 1
SAMPLE_S = 1.0
LEFT_OUT = "A metric is left out:"
RECENT = 50  # silences of a phase that are remembered
BUSY_BYTES = 1_000_000  # read or written in a second: saving and loading, beside the records
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


class Telemetry:
    """Writer of `metrics.jsonl`, `events.jsonl` and `heartbeat` of one attempt."""

    def __init__(self, run: RunDir, attempt: int) -> None:
        self.run = run
        self.attempt = attempt
        self.phase = "starting"
        self.seconds = 0.0  # of training, over all attempts
        self.step_s = 0.0  # what the last step took
        self.each_second: Callable[[], None] = lambda: None  # called by the sampler thread
        self.on_metric: Callable[[dict[str, Any]], None] = lambda record: None
        self._signs = 0
        self._moved = moved_bytes()
        self._sign_at = time.monotonic()
        self._silences: dict[str, deque[float]] = {}  # the newest of each phase
        self._progress: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._complained: set[int | None] = set()
        self._problems_of_metrics: set[str] = set()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._sample: Callable[[], dict[str, Any]] = dict
        for path in (run.metrics, run.events):
            _end_last_line(path)
        self._metrics = run.metrics.open("ab", buffering=0)
        self._events = run.events.open("ab", buffering=0)

    def start(self, sample: Callable[[], dict[str, Any]]) -> None:
        """Begin to beat and to sample; `sample()` gives one device record."""
        self._sample = sample
        self._write_heartbeat()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)
        self._thread.start()

    def set_sampler(self, sample: Callable[[], dict[str, Any]]) -> None:
        """Sample with another function from now on, once the device is known."""
        self._sample = sample

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._metrics.close()
        self._events.close()

    def metric(self, kind: str, **values: Any) -> None:
        """One line of metrics; keys, kinds and units are those of `lab/metrics.py`.

        What the table does not know, or what is not a number, is left out with a warning: a metric
        that was added wrongly ends no run.
        """
        values, problems = metrics.check(kind, values)
        for problem in problems:
            if problem not in self._problems_of_metrics:
                self._problems_of_metrics.add(problem)
                self.warn(f"{LEFT_OUT} {problem}.")
        record = {"v": VERSION, "kind": kind, "attempt": self.attempt, "time": _now(), **values}
        self._write(self._metrics, record)
        self.on_metric(record)

    def event(self, kind: str, **values: Any) -> None:
        """One line of events: phases, warnings, samples, checkpoints."""
        record = {"v": VERSION, "kind": kind, "attempt": self.attempt, "time": _now(), **values}
        self._write(self._events, record)

    def enter_phase(self, phase: str) -> None:
        """Begin a phase; said once, however often it is entered again in a row."""
        self.sign()
        if phase != self.phase:
            self.phase = phase
            self._progress = {}
            self.event("phase", phase=phase)
            print(f"{time.strftime('%H:%M:%S')} {phase}", flush=True)
            self._write_heartbeat()

    def progress(
        self, done: float, total: float, unit: str, eta_s: float | None = None, **more: Any
    ) -> None:
        """How far the phase is; the next heartbeat carries it, with `more` figures of the phase."""
        self.sign()
        progress = {"done": done, "total": total, "unit": unit, **more}
        if eta_s is not None:
            progress["eta_s"] = round(eta_s, 1)
        self._progress = progress

    def writing(self, done: int, most: int, text: str) -> None:
        """How far a sample is, and its text so far; the next heartbeat carries both."""
        self.sign()
        self._progress = {"done": done, "total": most, "unit": "token", "text": text}

    def sign(self) -> None:
        """Called by the main thread wherever it gets on: the heartbeat, which another thread
        writes, tells how often, and how long the longest silence of the phase was lately."""
        now = time.monotonic()
        silences = self._silences.setdefault(self.phase, deque(maxlen=RECENT))
        silences.append(now - self._sign_at)
        self._signs, self._sign_at = self._signs + 1, now

    def warn(self, message: str) -> None:
        self.event("warning", message=message)
        print(f"warning: {message}", flush=True)

    def _write(self, file: Any, record: dict[str, Any]) -> None:
        line = json.dumps(record, allow_nan=True) + "\n"
        try:
            with self._lock:
                file.write(line.encode())
        except OSError as error:  # a full disk must not end the training
            self._log_error_once(error)

    def _log_error_once(self, error: OSError) -> None:
        """Logged once per error code, because the disk itself may be the problem."""
        if error.errno not in self._complained:
            self._complained.add(error.errno)
            print(f"warning: telemetry cannot write: {error}", flush=True)

    def _write_heartbeat(self) -> None:
        beat = Heartbeat(
            phase=self.phase,
            time=_now(),
            attempt=self.attempt,
            signs=self._signs,
            slowest_s=round(max(self._silences.get(self.phase) or (0.0,)), 1),
            step_s=round(self.step_s, 1),
            **self._progress,
        )
        try:
            write_atomic(self.run.heartbeat, json.dumps(beat.to_json()), durable=False)
        except OSError as error:
            self._log_error_once(error)

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            before, self._moved = self._moved, moved_bytes()
            if self._moved - before > BUSY_BYTES:
                self._signs += 1  # one large file is written or read for minutes without a `sign`
            self._write_heartbeat()
            self.each_second()
            self.metric("device", seconds=self.seconds, phase=self.phase, **self._sample())


class PeakMemory:
    """Peaks by phase. On a GPU from the allocator; on a CPU the resident memory."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.on_gpu = getattr(device, "type", "cpu") == "cuda"
        self.peaks: dict[str, int] = {}

    def end_phase(self, phase: str) -> None:
        """Close the phase that ran since the last mark, under the name `phase`."""
        import torch

        if self.on_gpu:
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            peak = resident_bytes()
        self.peaks[phase] = max(self.peaks.get(phase, 0), peak)

    @property
    def peak_bytes(self) -> int:
        """The largest of all phases so far; on a CPU the process's own high-water mark."""
        highest = max(self.peaks.values(), default=0)
        return highest if self.on_gpu else max(highest, resident_peak_bytes())

    def summary(self) -> dict[str, Any]:
        """What a run's summary keeps of them."""
        return {"peak_bytes": self.peak_bytes, "peaks": dict(self.peaks)}


def tensor_bytes(model: Any, optimizer: Any, scores: Iterable[Any] = ()) -> dict[str, int]:
    """Bytes of weights, of their gradients while they exist, of the optimizer's state with the
    `scores` that the method keeps, and of what of that state is paged: CUDA moves it between GPU
    and host, and no device has to hold it."""
    import torch

    weights = {id(weight): weight for weight in model.parameters()}
    state = getattr(optimizer, "optimizer", optimizer).state
    moments = [
        value
        for entry in state.values()
        for value in (entry.values() if isinstance(entry, dict) else ())
        if isinstance(value, torch.Tensor)
    ]
    paged = [moment for moment in moments if getattr(moment, "is_paged", False)]
    resident = [moment for moment in moments if not getattr(moment, "is_paged", False)]

    def size(tensors: Any) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    trainable = [weight for weight in weights.values() if weight.requires_grad]
    return {
        "weights": size(weights.values()),
        "gradients": size(trainable),
        "optimizer": size([*resident, *scores]),
        "paged": size(paged),
    }


def device_stats_reader(run: RunDir, uses_gpu: bool) -> Callable[[], dict[str, Any]]:
    """A function that gives one device record: memory, and NVML's figures where there is a GPU."""
    handle, nvml = _nvml_handle() if uses_gpu else (None, None)

    def sample() -> dict[str, Any]:
        record: dict[str, Any] = {"cpu/rss_bytes": resident_bytes()}
        if uses_gpu:
            import torch

            record["cuda/allocated_bytes"] = torch.cuda.memory_allocated()
            record["cuda/reserved_bytes"] = torch.cuda.memory_reserved()
        if nvml is not None:
            record |= _nvml_record(nvml, handle)
        return record

    return sample


def _nvml_handle() -> tuple[Any, Any]:
    """(device, pynvml), or (None, None) where the driver offers no NVML."""
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        # the whole card's figures; of a MIG part only its own can be had
        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        if devices.pinned().startswith("MIG-"):
            uuid = devices.pinned()
        return pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()), pynvml
    except pynvml.NVMLError as error:
        print(f"warning: no NVML, so no power and temperature: {error}", flush=True)
        return None, None


def _nvml_record(nvml: Any, handle: Any) -> dict[str, Any]:
    """What NVML can say about the card; a figure that it refuses is left out."""
    readers = {
        "nvml/used_bytes": lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used),
        "nvml/utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "nvml/power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "nvml/temperature_c": lambda: nvml.nvmlDeviceGetTemperature(
            handle, nvml.NVML_TEMPERATURE_GPU
        ),
    }
    record = {}
    for key, read in readers.items():
        try:
            record[key] = read()
        except nvml.NVMLError:
            continue  # some cards have no such sensor
    return record


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step (Linux with glibc).

    By default a tensor over 32 MB is mapped again each time and its pages are cleared by the
    kernel: about a quarter of the time of head and loss on a CPU, where logits and gradients of
    the embeddings are that large.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def moved_bytes() -> int:
    """What this process has read and written so far; 0 where the kernel does not say."""
    try:
        with open("/proc/self/io", "rb") as file:
            figures = dict(line.split(b": ") for line in file)
        return sum(int(figures[key]) for key in (b"rchar", b"wchar", b"read_bytes"))
    except (OSError, KeyError, ValueError):
        return 0


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def resident_peak_bytes() -> int:
    """The highest resident memory that this process ever had.

    Not getrusage's: Linux carries that one over from the process that started this one.
    """
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _now() -> float:
    return round(time.time(), 3)


def _end_last_line(path: Any) -> None:
    """End an unfinished last line of a killed attempt, so that new records begin a line."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
