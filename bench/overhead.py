"""What the lab itself costs: CPU time beside the training, and time until the first step.

The share: every callback and hook of the conductor and the memory marks are timed with the
thread's own clock, the sampler by its thread's; together they are held against the CPU time of
the whole loop. The start: a worker from its spawning to the end of its first step, cold and from
the spare, against a bare script that imports, loads and makes one step, in turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.fault_injection import home_at
from bench.workload import Work, make_folder, work
from lab import paths
from lab.atomic_files import read_object, write_json
from lab.checked_run import CheckedRun
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions, record_reader, warm_worker
from lab.spec import RunSpec

BARE = """
import json, sys, time
import torch, peft
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, ids = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
model = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear"))
weights = [weight for weight in model.parameters() if weight.requires_grad]
optimizer = torch.optim.AdamW(weights, lr=1e-4)
ids = torch.tensor(ids)
model(input_ids=ids, labels=ids).loss.backward()
optimizer.step()
"""
MAX_RUN_S = 180.0


@dataclass
class Report:
    """Seconds, and the share of the loop's CPU time that the lab took beside the training."""

    step_s: float = 0.0
    share: float = 0.0
    parts_ms_a_step: dict[str, float] = field(default_factory=dict)
    bare_s: list[float] = field(default_factory=list)
    cold_s: list[float] = field(default_factory=list)
    spare_s: list[float] = field(default_factory=list)
    phases_s: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        median = {
            name: statistics.median(getattr(self, f"{name}_s"))
            for name in ("bare", "cold", "spare")
            if getattr(self, f"{name}_s")
        }
        against = {
            f"{name}_over_bare": value / median["bare"]
            for name, value in median.items()
            if name != "bare"
        }
        return asdict(self) | {"median_s": median} | against


def overhead(rounds: int = 3, steps: int = 12, tell: Callable[[str], object] = print) -> Report:
    """Measure both. The model is the speed bench's small one."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="lab-overhead-") as folder, home_at(Path(folder)):
        model = Path(folder) / "model"
        # in a process of its own: the starts below must find no library in memory here
        subprocess.run(
            [sys.executable, "-m", "bench.overhead", str(model), str(steps)],
            cwd=paths.ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for i in range(rounds):
            _starts(model, i, report)
            tell(f"start {i + 1} of {rounds}")
        measured = json.loads((model / "share.json").read_text(encoding="utf-8"))
        report.step_s, report.share = measured["step_s"], measured["share"]
        report.parts_ms_a_step = measured["parts_ms_a_step"]
    return report


def _starts(folder: Path, round_index: int, report: Report) -> None:
    """One bare script, one cold worker, one from the spare; the order turns."""
    tests = [
        lambda: report.bare_s.append(_bare(folder)),
        lambda: report.cold_s.append(_cold(folder, report)),
        lambda: report.spare_s.append(_spare(folder, report)),
    ]
    for test in tests if round_index % 2 == 0 else tests[::-1]:
        test()


def _bare(folder: Path) -> float:
    ids = [[5 + i % 400 for i in range(256)]] * 4
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", BARE, str(folder), json.dumps(ids)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.monotonic() - began


def _cold(folder: Path, report: Report) -> float:
    run = _create(folder)
    began = time.time()
    worker = warm_worker.spawn_worker(run)
    return _to_first_step(run, worker, began, report)


def _spare(folder: Path, report: Report) -> float:
    from lab.runs.queue import folder as queue_folder
    from lab.runs.warm_worker import WarmWorker

    paths.make_folder(queue_folder())
    spare = WarmWorker()
    spare.start()
    time.sleep(report.cold_s[-1] + 5.0 if report.cold_s else 25.0)  # its imports
    run = _create(folder)
    began = time.time()
    worker = spare.assign(run)
    if worker is None:
        raise LabError("The spare worker ended by itself.", "See queue/spare.txt.")
    return _to_first_step(run, worker, began)


def _to_first_step(
    run: RunDir, worker: subprocess.Popen[bytes], began: float, report: Report | None = None
) -> float:
    try:
        worker.wait(timeout=MAX_RUN_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        raise LabError(f"The worker did not end within {MAX_RUN_S:.0f} s.") from None
    records = record_reader.metrics(run, "train")
    if not records:
        raise LabError(f"The worker made no step: {read_object(run.result)}.")
    if report is not None:
        marks = [(event["phase"], event["time"]) for event in record_reader.events(run, "phase")]
        names = ["spawned", *(name for name, _ in marks)]
        times = [began, *(moment for _, moment in marks), records[0]["time"]]
        for name, start, end in zip(names, times, times[1:], strict=False):
            if start < records[0]["time"]:
                end = min(end, records[0]["time"])
                report.phases_s[name] = report.phases_s.get(name, 0.0) + end - start
    return float(records[0]["time"]) - began


def _create(folder: Path) -> RunDir:
    """A run of one step that is only trained, as the bare script does."""
    spec = json.loads((folder / "work.json").read_text(encoding="utf-8"))["spec"]
    spec["train"] |= {"max_steps": 1}
    return actions.create_run_dir(CheckedRun(RunSpec.from_json(spec), spec))


def measure_share(workload: Work, folder: Path) -> dict[str, Any]:
    """Run `asked` as a worker does, with clocks around what the lab adds to the loop."""
    from lab.train.attempt import Attempt
    from lab.train.telemetry import Telemetry, device_stats_reader

    run = RunDir(folder / "run")
    for part in (run.commands, run.checkpoints):
        paths.make_folder(part)
    write_json(run.spec, workload.spec.to_json())
    telemetry = Telemetry(run, 1)
    telemetry.start(device_stats_reader(run, uses_gpu=False))
    try:
        attempt = Attempt(run, workload.spec, telemetry)
        conductor = attempt.prepare()
        spent = _Spent()
        spent.watch(conductor, "on_step_end")
        spent.watch(attempt.memory, "end_phase")
        spent.watch(conductor.loop.batches, "tensors")
        sampling = _thread_clock("sampler")
        began, sampled = time.process_time(), time.clock_gettime(sampling)
        conductor.loop.run()
        whole = time.process_time() - began
        spent.seconds["sampler"] = time.clock_gettime(sampling) - sampled
    finally:
        telemetry.stop()
    spent.seconds.pop("tensors")  # collating is training's own; it is shown, not counted
    steps = workload.all_steps
    walls = [record["perf/step_s"] for record in record_reader.metrics(run, "train")]
    return {
        "step_s": statistics.median(walls),
        "share": sum(spent.seconds.values()) / whole,
        "parts_ms_a_step": {name: 1e3 * s / steps for name, s in spent.seconds.items()},
    }


class _Spent:
    """CPU seconds of this thread by what spent them; a call within another counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = False

    def watch(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)
        self.seconds[name] = 0.0

        def timed(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return original(*arguments, **named)
            self._inside = True
            began = time.thread_time()
            try:
                return original(*arguments, **named)
            finally:
                self.seconds[name] += time.thread_time() - began
                self._inside = False

        setattr(owner, name, timed)


def _thread_clock(name: str) -> int:
    thread = next(thread for thread in threading.enumerate() if thread.name == name)
    assert thread.ident is not None
    return time.pthread_getcpuclockid(thread.ident)


def _make(folder: Path, steps: int) -> None:
    """The model, the trial, and its share, into `folder`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    make_folder(folder, "small", (steps + 2) * 4, 256)
    workload = work("lora", folder, length=256, batch=4, warm=1, steps=steps - 1, compile="off")
    (folder / "work.json").write_text(json.dumps(workload.to_json()), encoding="utf-8")
    (folder / "share.json").write_text(
        json.dumps(measure_share(workload, folder)), encoding="utf-8"
    )


if __name__ == "__main__":
    from lab.train.telemetry import keep_freed_memory

    keep_freed_memory()
    _make(Path(sys.argv[1]), int(sys.argv[2]))
