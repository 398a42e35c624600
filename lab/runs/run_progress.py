"""How far a whole run is: its phases from loading to saving, as shares of one bar.

A phase that has ended counts with the seconds that it took; the one at work with what its progress
says; those to come with an expectation, from the estimate where there is one.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace

from lab.atomic_files import finite_number, read_object
from lab.checked_run import read_forecast
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.heartbeat import Heartbeat, read_heartbeat
from lab.runs.metric_series import series_of
from lab.spec import RunSpec

TITLES = {
    "load": "Load",
    "data": "Data",
    "base": "Base measured",
    "sample": "First sample",
    "train": "Training",
    "save": "Save",
}
BEFORE = {  # phases of the worker before the first step
    "tokenising": "data",
    "evaluating": "base",
    "sampling": "sample",
    "training": "train",
    "saving": "save",
}
EXPECTED_S = {"load": 12.0, "data": 3.0, "base": 10.0, "sample": 10.0, "train": 60.0, "save": 3.0}
EVALUATIONS, SAMPLES = 10, 3  # in a run, where the spec leaves it open, as in the estimate
BASE_PROBE = 6  # times what the base's part of the forgetting probe takes, all of it takes
MIN_DONE = 0.03  # of a phase, before its own pace says how long it takes


@dataclass(frozen=True)
class Phase:
    """One part of the run. `state`: "done", "now" or "next"; seconds so far, and in all as far as
    anybody knows."""

    name: str
    state: str
    spent_s: float
    total_s: float
    done: float = 0.0
    total: float = 0.0
    doing: str = ""  # what `done` and `total` count between steps: "evaluating"

    @property
    def title(self) -> str:
        return TITLES[self.name]


@dataclass(frozen=True)
class RunProgress:
    phases: tuple[Phase, ...]
    text: str = ""  # of the sample that is being written

    @property
    def left_s(self) -> float:
        return sum(max(0.0, phase.total_s - phase.spent_s) for phase in self.phases)

    @property
    def fraction(self) -> float:
        spent = sum(phase.spent_s for phase in self.phases)
        return spent / (spent + self.left_s) if spent + self.left_s > 0 else 0.0

    @property
    def now(self) -> Phase | None:
        return next((phase for phase in self.phases if phase.state == "now"), None)


def run_progress(run: RunDir, now: float | None = None) -> RunProgress:
    """The phases of the run's current attempt."""
    now = time.time() if now is None else now
    beat = read_heartbeat(run) or Heartbeat()
    events = _phase_events(run)
    names = _names(run)
    spent = dict.fromkeys(TITLES, 0.0)
    current = "load"
    has_trained = False
    moments = [*((at, name) for at, name in events), (now, "")]
    for (at, name), (until, _) in itertools.pairwise(moments):
        has_trained = has_trained or name == "training"
        current = _part(name, has_trained, run) if name != "ended" else current
        spent[current] += max(0.0, until - at)
    expected = _expected(run)
    order = list(TITLES)
    position = order.index(current)
    phases = []
    for name in names:
        i = order.index(name)
        state = "done" if i < position else "now" if i == position else "next"
        total_s = spent[name] if state == "done" else max(expected[name], spent[name])
        phases.append(Phase(name, state, spent[name], total_s))
    phases = [_with_beat(phase, beat) if phase.state == "now" else phase for phase in phases]
    return RunProgress(tuple(phases), beat.text[:2000])


def _phase_events(run: RunDir) -> list[tuple[float, str]]:
    """(when, phase) of the newest attempt, in order."""
    events = [
        event
        for event in record_reader.events(run, "phase")
        if finite_number(event.get("time")) is not None and isinstance(event.get("phase"), str)
    ]
    newest = max((finite_number(event.get("attempt")) or 0 for event in events), default=0)
    return [
        (float(event["time"]), event["phase"])
        for event in events
        if (finite_number(event.get("attempt")) or 0) == newest
    ]


def _part(phase: str, has_trained: bool, run: RunDir) -> str:
    """The part of the bar that a phase of the worker belongs to. Evaluations, samples and
    checkpoints between steps are part of the training; the last saving is not."""
    if not has_trained:
        return BEFORE.get(phase, "load")
    if phase == "saving" and not (run.commands / "save").exists() and _is_over(run):
        return "save"
    return "train"


def _is_over(run: RunDir) -> bool:
    """Whether every planned step is done."""
    beat, plan = read_heartbeat(run) or Heartbeat(), record_reader.last_event(run, "plan")
    if beat.phase != "saving":
        return False
    last = finite_number(series_of(run).train.last("step"))
    steps = finite_number(plan.get("steps"))
    return last is not None and steps is not None and last >= steps


def _names(run: RunDir) -> list[str]:
    """The parts that this run has."""
    spec = RunSpec.from_stored(read_object(run.spec) or {})
    has_base = bool(spec.data.eval_fraction or spec.data.eval_dataset)
    is_resumed = bool(finite_number(record_reader.last_event(run, "plan").get("resumed_at")))
    missing = set()
    if not has_base or is_resumed:
        missing.add("base")
    if spec.train.sample_steps == 0 or is_resumed:
        missing.add("sample")
    return [name for name in TITLES if name not in missing]


def _expected(run: RunDir) -> dict[str, float]:
    """Seconds that each part should take."""
    expected = dict(EXPECTED_S)
    runtime = read_forecast(run).runtime
    if runtime is None:
        return expected
    later = runtime.sampling_s * (1 - 1 / SAMPLES)
    later += runtime.probing_s * (1 - 1 / BASE_PROBE)
    expected["train"] = max(1.0, runtime.seconds + runtime.evaluating_s + later)
    if runtime.evaluating_s:
        expected["base"] = runtime.evaluating_s / EVALUATIONS + runtime.probing_s / BASE_PROBE
    if runtime.loading_s:
        expected["load"] = runtime.loading_s
    if runtime.sampling_s:
        expected["sample"] = runtime.sampling_s / SAMPLES
    if runtime.saving_s:
        expected["save"] = runtime.saving_s
    return expected


def _with_beat(phase: Phase, beat: Heartbeat) -> Phase:
    """The phase at work, with what the worker says of it."""
    done, total, eta_s = beat.done, beat.total, beat.eta_s
    total_s = phase.total_s
    if beat.phase == "downloading":
        # what lies in the cache counts as done and took no time, so its own figure is the better
        return replace(phase, total_s=max(total_s, phase.spent_s + (eta_s or 0.0)))
    if phase.name == "train" and eta_s is not None and beat.phase == "training":
        total_s = phase.spent_s + eta_s
    elif phase.name != "train" and total and done / total >= MIN_DONE:
        total_s = phase.spent_s / min(1.0, done / total)
    is_between = phase.name == "train" and beat.phase != "training"
    return replace(
        phase, done=done, total=total, total_s=max(phase.spent_s, total_s),
        doing=beat.phase if is_between else "",
    )  # fmt: skip
