"""How fast the worker trains against what else there is: same work, taking turns, in one run.

In each round every contestant does each trial once, in turning order; a ratio is formed within a
round, so that what the machine does beside it weighs on both. A trial starts again from the same
weights and the same rows. That the work was equal is proven by equal losses at each step; without
that there is no ratio.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import paired_stats
from bench.frameworks import CONTESTANTS, DEFAULTS, absent
from bench.workload import CASES, SHAPES, work
from lab import host, paths
from lab.errors import LabError

TOLERANCE = {"float32": 1e-3, "mixed": 2e-2, "bfloat16": 2e-2}  # of a step's loss, relative
WORKER = "worker"
LOG_LINES = 15

Answers = dict[int, dict[str, Any]]  # of one contestant's trial, by the number of the round
Trials = dict[tuple[str, str, str], Answers]  # by case, contestant, checkpointing


@dataclass(frozen=True)
class Plan:
    """What is measured: which cases and rivals, how long and how often."""

    model: str = "small"
    cases: tuple[str, ...] = ("full", "lora", "chat")
    rivals: tuple[str, ...] = ("plain", "trl", "liger", "unsloth")
    pairs: int = 20
    seldom: int = 4  # every so many rounds all trials; in the others the worker and `plain`
    length: int = 64
    batch: int = 2
    chat_length: int = 512
    chat_batch: int = 1
    warm: int = 1
    steps: int = 2
    compile: str = "off"

    @staticmethod
    def for_machine(model: str | None = None, on_gpu: bool | None = None) -> Plan:
        """The usual plan: a small model on a processor, a published shape on a GPU."""
        if on_gpu if on_gpu is not None else bool(host.gpus()):
            return Plan(
                model=model or "llama-3.2-1b",
                cases=("full", "lora", "qlora", "chat"),
                pairs=5,
                seldom=1,
                length=1024,
                batch=4 if model == "llama-3.1-8b" else 8,
                chat_length=1024,
                chat_batch=4,
                warm=5,
                steps=10,
                compile="on",
            )
        return Plan(model=model or "small")


@dataclass
class Report:
    """What was measured. `missing`: contestants that took no part, and why."""

    model: str
    device: str
    pairs: int
    missing: dict[str, str] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    ratios: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return bool(self.ratios) and not self.failures


class Contestant:
    """A contestant's process: takes an order, gives an answer."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log = name, log
        reading, writing = os.pipe()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "bench.frameworks", name),
                    *("--answers", str(writing)),
                ],
                cwd=paths.ROOT,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                start_new_session=True,  # an interrupt ends the bench, which then ends them
                text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
        os.close(writing)
        self.answers = os.fdopen(reading, encoding="utf-8")

    def hear(self) -> dict[str, Any]:
        """Its next answer. Raises LabError with the end of its log if it ended instead."""
        line = self.answers.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.process.wait()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise LabError(f"The contestant {self.name} ended by itself:\n{tail}")

    def do(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; hearing says why
        return self.hear()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.answers.close()


def speed(plan: Plan, tell: Callable[[str], object] = print) -> Report:
    """Measure. Raises LabError for a plan that cannot be, and for a contestant that breaks down."""
    _check(plan)
    began = time.monotonic()
    report = Report(plan.model, _device(), plan.pairs)
    report.missing = {name: why for name in plan.rivals if (why := absent(name))}
    names = [WORKER, *(name for name in plan.rivals if name not in report.missing)]
    trials: Trials = {}
    with tempfile.TemporaryDirectory(prefix="lab-speed-") as folder:
        contestants: dict[str, Contestant] = {}
        try:
            for name in names:
                contestants[name] = Contestant(name, Path(folder) / f"{name}.log")
            for name in names:
                if reason := contestants[name].hear().get("missing"):
                    report.missing[name] = str(reason)
                    contestants.pop(name).end()
            if WORKER not in contestants:
                raise LabError(f"The worker cannot run: {report.missing[WORKER]}.")
            tell(f"{', '.join(contestants)}: ready after {time.monotonic() - began:.0f} s")
            _make_model(plan, contestants[WORKER], Path(folder) / "model")
            for round_index in range(plan.pairs):
                for case in plan.cases:
                    _round(
                        plan, case, round_index, contestants, Path(folder) / "model", trials, report
                    )
                tell(f"round {round_index + 1} of {plan.pairs}, {time.monotonic() - began:.0f} s")
        except KeyboardInterrupt:
            tell("ended early: what follows is of the rounds so far")
        finally:
            for process in contestants.values():
                process.end()
    _sum_up(trials, report)
    report.seconds = time.monotonic() - began
    return report


def _check(plan: Plan) -> None:
    for name, requested, known in (
        ("model", (plan.model,), SHAPES),
        ("case", plan.cases, CASES),
        ("rival", plan.rivals, [name for name in CONTESTANTS if name != WORKER]),
    ):
        if wrong := [name for name in requested if name not in known]:
            raise LabError(f"Unknown {name} '{wrong[0]}'.", f"Choose from: {', '.join(known)}.")
    if not plan.cases or not plan.rivals:
        raise LabError("There is nothing to measure.", "Give a case and a rival.")


def _make_model(plan: Plan, maker: Contestant, folder: Path) -> None:
    rows = (plan.warm + plan.steps) * max(plan.batch, plan.chat_batch)
    length = max(plan.length, plan.chat_length)
    answer = maker.do(do="make", folder=str(folder), shape=plan.model, rows=rows, length=length)
    if "error" in answer:
        raise LabError(f"The bench's model could not be made: {answer['error']}.")


def _round(
    plan: Plan,
    case: str,
    round_index: int,
    contestants: dict[str, Contestant],
    folder: Path,
    trials: Trials,
    report: Report,
) -> None:
    """Every contestant's trials of one case, in reverse order every other round."""
    is_chat = case == "chat"
    workload = work(
        case,
        folder,
        length=plan.chat_length if is_chat else plan.length,
        batch=plan.chat_batch if is_chat else plan.batch,
        warm=plan.warm,
        steps=plan.steps,
        compile=plan.compile,
    )
    turns = [(name, switch) for switch in ("off", "on") for name in contestants]
    if round_index % plan.seldom:
        turns = [turn for turn in turns if turn in ((WORKER, "off"), ("plain", "off"))]
    for name, switch in turns if round_index % 2 == 0 else turns[::-1]:
        answers = trials.setdefault((case, name, switch), {})
        if any("error" in answer for answer in answers.values()):
            continue  # it has failed at this before; once is enough to know
        answer = contestants[name].do(
            do="trial", work=workload.with_checkpointing(switch).to_json()
        )
        answer["precision"] = workload.spec.train.precision
        answers[round_index] = answer
        if "error" in answer:
            report.failures.append(f"{case}, {name}, checkpointing {switch}: {answer['error']}")


def _sum_up(trials: Trials, report: Report) -> None:
    """Trials and ratios, like against like and default against default."""
    for (case, name, switch), answers in trials.items():
        done = [answer for answer in answers.values() if "error" not in answer]
        if not done:
            continue
        report.trials.append(
            {
                "case": case,
                "contestant": name,
                "checkpointing": switch,
                "trials": len(done),
                "tokens_per_s": statistics.median(
                    answer["tokens"] / answer["seconds"] for answer in done
                ),
                "peak_bytes": max(answer["peak_bytes"] for answer in done),
                "losses": done[-1]["losses"],
            }
        )
    for case, name in dict.fromkeys((case, name) for case, name, _ in trials if name != WORKER):
        for setting, ours, theirs in (
            ("off against off", "off", "off"),
            ("on against on", "on", "on"),
            ("default against default", DEFAULTS[WORKER], DEFAULTS[name]),
        ):
            formed = ratio(trials[case, WORKER, ours], trials[case, name, theirs])
            if formed is not None:
                report.ratios.append(
                    {"case": case, "rival": name, "checkpointing": setting, **formed}
                )
    report.failures += [
        f"{ratio['case']}, {ratio['rival']}, {ratio['checkpointing']}: not equal work, "
        f"{ratio['not_equal']}; no ratio is formed"
        for ratio in report.ratios
        if ratio["not_equal"]
    ]


def ratio(ours: Answers, theirs: Answers) -> dict[str, Any] | None:
    """tokens/s of `ours` over `theirs` in the rounds that both did; None without one.

    "ratio" is None where the losses prove that the work was not equal; "not_equal" says why.
    """
    both = [
        (ours[round_index], theirs[round_index])
        for round_index in ours
        if round_index in theirs
        and "error" not in ours[round_index]
        and "error" not in theirs[round_index]
    ]
    if not both:
        return None
    tolerance = TOLERANCE[both[0][0]["precision"]]
    ratios = []
    for left, right in both:
        why = paired_stats.far_apart(left["losses"], right["losses"], tolerance)
        if left["tokens"] != right["tokens"]:
            why = why or f"{left['tokens']} tokens against {right['tokens']}"
        if why:
            return {"ratio": None, "not_equal": why, "tolerance": tolerance}
        ratios.append(left["tokens"] / left["seconds"] / (right["tokens"] / right["seconds"]))
    return {"ratio": paired_stats.spread(ratios), "not_equal": "", "tolerance": tolerance}


def _device() -> str:
    gpus = host.gpus()
    return gpus[0].name if gpus else host.describe().processor
