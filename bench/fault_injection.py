"""SIGKILL at random moments of loading, training, evaluating and saving; then resume.

Every run has to end with the weights of an uninterrupted one, bit for bit, with one continuous
history, whatever the moment of the kills. Workers are forked from a process that has imported its
libraries, so that a kill costs a second and not ten.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.small_model import make_model
from lab import paths, process
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions, record_reader
from lab.runs.heartbeat import Heartbeat, read_heartbeat
from lab.runs.status import status

SHAPES = (("lora", "off"), ("full", "on"), ("lora", "on"), ("full", "off"))
KILLS_A_RUN = 6
MAX_RUN_S = 120.0


@dataclass
class Report:
    """What the kills did. `lost_records` is the most that any one kill cost."""

    kills: int = 0
    runs: int = 0
    resumed: int = 0
    equal: int = 0
    continuous: int = 0
    lost_records: int = 0
    damaged_skipped: int = 0
    phases: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        whole = self.resumed == self.equal == self.continuous == self.runs
        return whole and not self.failures and self.lost_records <= 1


def faults(kills: int, seed: int = 0, tell: Callable[[str], object] = print) -> Report:
    """Kill workers `kills` times in a temporary home; the report. Needs the built-in tokenizer."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lab-faults-") as folder, home_at(Path(folder)):
        _import_libraries()
        shapes = specs(Path(folder))
        references: dict[int, tuple[RunDir, float]] = {}
        report, chance = Report(), random.Random(seed)
        phases: Counter[str] = Counter()
        while report.kills < kills:
            shape = report.runs % len(SHAPES)
            if shape not in references:
                tell(f"a reference run without a kill: {shapes[shape]['name']} ...")
                references[shape] = _uninterrupted(shapes[shape])
            reference, duration = references[shape]
            most = min(KILLS_A_RUN, kills - report.kills)
            _one_run(shapes[shape], reference, duration, most, chance, report, phases)
            tell(f"{report.kills} of {kills} kills, {report.equal} of {report.runs} runs equal")
        report.phases = dict(sorted(phases.items()))
    report.seconds = time.monotonic() - began
    return report


def _one_run(
    spec: dict[str, Any],
    reference: RunDir,
    duration: float,
    kills: int,
    chance: random.Random,
    report: Report,
    phases: Counter[str],
) -> None:
    """One run, killed `kills` times on its way, held against its reference."""
    run = _create(spec)
    report.runs += 1
    for attempt in range(kills + 1):
        worker = _fork(run)
        is_last = attempt == kills
        limit = MAX_RUN_S if is_last else chance.uniform(0.0, 0.8 * duration)
        ended = _wait(worker, limit)
        if ended and status(run).state == "done":
            break
        if ended or is_last:
            report.failures.append(f"{run.id}: {status(run)}")
            return
        _kill(run, worker, report, phases)
        if status(run).state == "done":
            break  # it was killed behind its last act
        _resume(run)
    report.resumed += 1
    warnings = [event["message"] for event in record_reader.events(run, "warning")]
    report.damaged_skipped += sum("Skipped a checkpoint" in text for text in warnings)
    _hold_against(run, reference, report)


def _kill(run: RunDir, worker: int, report: Report, phases: Counter[str]) -> None:
    """SIGKILL, and a look at what was left behind."""
    before, _ = record_reader.read_lines(run.metrics)
    phase = (read_heartbeat(run) or Heartbeat()).phase
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    report.kills += 1
    phases[phase] += 1
    after, offset = record_reader.read_lines(run.metrics)
    if after[: len(before)] != before:
        report.failures.append(f"{run.id}: records vanished")
    size = run.metrics.stat().st_size if run.metrics.exists() else 0
    report.lost_records = max(report.lost_records, int(size > offset))
    if status(run).state not in ("crashed", "done"):
        report.failures.append(f"{run.id}: {status(run).state} after the kill")


def _hold_against(run: RunDir, reference: RunDir, report: Report) -> None:
    """Weights bit for bit; losses and steps as one history."""
    from safetensors.numpy import load_file

    weights = [
        {name: value.tobytes() for name, value in load_file(file).items()}
        for compared in (run, reference)
        for file in compared.artifact.glob("*.safetensors")
    ]
    if len(weights) == 2 and weights[0] == weights[1]:
        report.equal += 1
    else:
        report.failures.append(f"{run.id}: other weights than {reference.id}")
    series = [
        [
            [(record["step"], record[key]) for record in record_reader.metrics(compared, kind)]
            for kind, key in (("train", "train/loss"), ("eval", "eval/loss"))
        ]
        for compared in (run, reference)
    ]
    if series[0] == series[1]:
        report.continuous += 1
    else:
        report.failures.append(f"{run.id}: another history than {reference.id}")


def _uninterrupted(spec: dict[str, Any]) -> tuple[RunDir, float]:
    """(the run, its seconds)."""
    run = _create(spec)
    began = time.monotonic()
    if not _wait(_fork(run), MAX_RUN_S) or status(run).state != "done":
        raise LabError(f"The reference run failed: {status(run).message}", f"See {run.log}.")
    return run, time.monotonic() - began


def _create(spec: dict[str, Any]) -> RunDir:
    from lab.preflight.validate import check

    return actions.create_run_dir(check(spec).checked())


def _resume(run: RunDir) -> None:
    """As a person resumes, but the bench forks the worker itself."""
    submit = actions.submit
    actions.submit = lambda run, priority=0: None
    try:
        actions.resume(run)
    finally:
        actions.submit = submit


def _fork(run: RunDir) -> int:
    """A worker for `run`, from this process with its libraries imported; its pid."""
    pid = os.fork()
    if pid:
        process.register(run, pid)
        return pid
    try:
        os.setsid()
        with run.log.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        from lab.train.worker import work

        os._exit(work(run))
    except BaseException as error:
        print(f"worker: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(70)


def _wait(pid: int, seconds: float) -> bool:
    """Whether the child ended within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    return False


def _import_libraries() -> None:
    """Everything that a worker imports, without starting a thread of torch or the tokenizers."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import lab.train.attempt  # noqa: F401


def specs(folder: Path) -> list[dict[str, Any]]:
    """A tiny random model, some chats, and a spec for each shape."""
    pid = os.fork()  # building the model starts torch's threads, which a fork would lose
    if not pid:
        code = 1
        try:
            make_model(folder / "model")
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise LabError("The bench's model could not be made.", "Run `make setup` first.")
    chats = folder / "chats.jsonl"
    rows = [
        {"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}." + " Sure." * (n % 5)}
        for n in range(40)
    ]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [
        {
            "name": f"faults {method} {packing}",
            "model": str(folder / "model"),
            "method": {"name": method},
            "data": {
                "dataset": str(chats),
                "eval_fraction": 0.2,
                "max_length": 64,
                "packing": packing,
            },
            "train": {
                "batch_size": 2,
                "max_steps": 24,
                "learning_rate": 1e-3,
                "eval_steps": 4,
                "save_steps": 2,
                "sample_steps": 12,
            },
        }
        for method, packing in SHAPES
    ]


class home_at:
    """LAB_HOME at a temporary folder, with the models where they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before = {name: os.environ.get(name) for name in ("LAB_HOME", "LAB_MODELS")}

    def __enter__(self) -> None:
        os.environ["LAB_MODELS"] = str(paths.models())
        os.environ["LAB_HOME"] = str(self.folder / "home")

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
