"""Small pairs of runs that put a claim to the test on this machine, and what they have shown.

The runs of an experiment go through the queue like any others and carry its tag, so that they are
found again by whoever looks, and the result goes when they are deleted. One seed each: an
indication. Races with several seeds leave evidence, which is worth more.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab import paths
from lab.advise.claims import (
    Basis,
    Claim,
    Finding,
    Ruling,
    Sum,
    judged,
    percent,
    range_of,
)
from lab.atomic_files import number, read_object
from lab.checked_run import CheckedRun
from lab.compare import evidence
from lab.errors import LabError
from lab.forecasts import RuntimeForecast
from lab.models import catalog
from lab.paths import RunDir
from lab.preflight import same_commits
from lab.preflight.client import planner
from lab.runs import actions, index, record_reader
from lab.runs.metric_series import series_of
from lab.schema import quote

TAG = "experiment-"
EQUAL = 0.005  # nats a token: less is no difference with one seed
EARLY_STEP = 30


@dataclass(frozen=True)
class Experiment:
    """`changes`: what each of the two runs has of its own; `shared`: what both have."""

    name: str
    title: str
    question: str
    shared: dict[str, Any]
    changes: tuple[dict[str, Any], dict[str, Any]]
    judges: dict[str, Callable[[Claim, RunDir, RunDir], Finding]]

    def specs(self) -> list[dict[str, Any]]:
        specs = []
        for own in self.changes:
            spec = copy.deepcopy(self.shared)
            for section, values in own.items():
                spec[section] = spec.get(section, {}) | values
            spec["name"] = f"{self.title}: {_title(own)}"[:120]
            specs.append(spec)
        return specs


def _title(own: dict[str, Any]) -> str:
    values = [str(value) for section in own.values() for value in section.values()]
    return " ".join(values)


def _final_loss(run: RunDir) -> float:
    return _number(series_of(run).evaluation.last("eval/loss"), run, "evaluation loss")


def _number(value: Any, run: RunDir, subject: str) -> float:
    """Raises LabError where a run lacks the figure."""
    known = number(value)
    if known is None:
        raise LabError(f"{run.id} has no {subject}.", "Run the experiment again.")
    return float(known)


def _per_token(run: RunDir) -> float:
    train = series_of(run).train
    seconds = _number(train.last("seconds"), run, "training time")
    return seconds / max(_number(train.last("tokens"), run, "number of tokens"), 1.0)


def _peak(run: RunDir) -> float:
    return _number(series_of(run).train.last("memory/peak_bytes"), run, "peak memory")


def early_and_late(claim: Claim, full: RunDir, lora: RunDir) -> Finding:
    """D4: who leads at step 30, and who at the end."""
    losses: dict[str, list[float]] = {}
    for name, run in (("full", full), ("lora", lora)):
        columns = series_of(run).evaluation
        steps, values = columns.get("step"), columns.get("eval/loss")
        early = [float(v) for step, v in zip(steps, values, strict=True) if step >= EARLY_STEP]
        if len(early) < 2:
            raise LabError(f"{run.id} was not evaluated twice.", "Run the experiment again.")
        losses[name] = [early[0], early[-1]]
    leads = [full_loss - lora_loss for full_loss, lora_loss in zip(*losses.values(), strict=True)]
    last = int(series_of(full).evaluation.last("step") or 0)
    value = (
        f"step {EARLY_STEP}: full {losses['full'][0]:.3f}, LoRA {losses['lora'][0]:.3f}; step "
        f"{last}: full {losses['full'][1]:.3f}, LoRA {losses['lora'][1]:.3f}"
    )
    if leads[0] > EQUAL and leads[1] < -EQUAL:
        return _seen(value, Ruling.CONFIRMED, "with one seed")
    if abs(leads[0]) <= EQUAL or abs(leads[1]) <= EQUAL:
        return _seen(value, Ruling.OPEN, "no difference shown")
    return _seen(value, Ruling.OFF, "with one seed: the same one leads at both")


def within_percents(claim: Claim, full: RunDir, lora: RunDir) -> Finding:
    """B12, of the evaluation loss in place of a benchmark."""
    most = range_of(claim.printed["percent"])[1]
    losses = _final_loss(full), _final_loss(lora)
    difference = losses[1] / losses[0] - 1
    value = f"LoRA {losses[1]:.3f}, full {losses[0]:.3f} ({percent(difference)})"
    kind = Ruling.CONFIRMED if 100 * difference <= most else Ruling.OFF
    return _seen(value, kind, "of the evaluation loss, with one seed")


def few_examples(claim: Claim, full: RunDir, lora: RunDir) -> Finding:
    """A10: whether PEFT beats full on few examples."""
    losses = _final_loss(full), _final_loss(lora)
    value = f"LoRA {losses[1]:.3f}, full {losses[0]:.3f} on held-out chats"
    if abs(losses[0] - losses[1]) <= EQUAL:
        return _seen(value, Ruling.OPEN, "no difference shown")
    kind = Ruling.CONFIRMED if losses[1] < losses[0] else Ruling.OFF
    return _seen(value, kind, "with one seed")


def forgetting(claim: Claim, full: RunDir, lora: RunDir) -> Finding:
    """A5, C20: how much the loss on the base's own general answers has risen."""
    rises = [_rise(full), _rise(lora)]
    value = f"general answers: full {rises[0]:+.3f}, LoRA {rises[1]:+.3f} nats a token"
    value = value.replace("-", "−")
    if abs(rises[0] - rises[1]) <= EQUAL:
        return _seen(value, Ruling.OPEN, "no difference shown")
    kind = Ruling.CONFIRMED if rises[0] > rises[1] else Ruling.OFF
    return _seen(value, kind, "with one seed")


def _rise(run: RunDir) -> float:
    records = record_reader.metrics(run, "probe")
    return _number(records[-1].get("probe/rise") if records else None, run, "forgetting probe")


def slower(claim: Claim, off: RunDir, on: RunDir) -> Finding:
    """C5, measured: time a token with and without recomputing."""
    low, high = range_of(claim.printed["slower"])
    value = 100 * (_per_token(on) / _per_token(off) - 1)
    figure = Sum("slower", low, high, value, "%", "seconds a token, on over off")
    return judged([figure], Basis.MEASURED)


def ratio_of_full(claim: Claim, full: RunDir, lora: RunDir) -> Finding:
    """D1's ratio: memory and time of full over LoRA's."""
    printed = claim.printed["times"]
    figures = [
        Sum("memory, times", printed, printed, _peak(full) / _peak(lora), "",
               "peak memory of the two runs"),
        Sum("time, times", printed, printed, _per_token(full) / _per_token(lora), "",
               "seconds a token of the two runs"),
    ]  # fmt: skip
    return judged(figures, Basis.MEASURED)


def _seen(value: str, verdict: Ruling, detail: str) -> Finding:
    return Finding(value, Basis.MEASURED, verdict, detail)


BUILT_IN = f"builtin:{catalog.BUILT_IN[0].name}"
_DATA = {"dataset": "builtin:persona-chats", "eval_fraction": 0.2, "max_length": 192,
         "packing": "off"}  # fmt: skip
_TRAIN = {"batch_size": 2, "max_steps": 90, "eval_steps": 30, "save_steps": 0, "sample_steps": 0}
EXPERIMENTS = (
    Experiment(
        "full-lora",
        "Full against LoRA",
        "The same 90 steps on short chats, each at its method's learning rate, with the "
        "forgetting probe.",
        {"model": BUILT_IN, "data": _DATA, "train": {**_TRAIN, "forgetting_probe": "on"}},
        ({"method": {"name": "full"}}, {"method": {"name": "lora"}}),
        {
            "D4": early_and_late,
            "B12": within_percents,
            "A10": few_examples,
            "A5": forgetting,
            "C20": forgetting,
            "D1": ratio_of_full,
        },
    ),
    Experiment(
        "checkpointing",
        "Recomputing activations",
        "The same LoRA run with and without activation checkpointing.",
        {
            "model": BUILT_IN,
            "data": _DATA,
            "method": {"name": "lora"},
            "train": {**_TRAIN, "max_steps": 20, "eval_steps": 0},
        },
        (
            {"train": {"activation_checkpointing": "off"}},
            {"train": {"activation_checkpointing": "on"}},
        ),
        {"C5": slower},
    ),
)


def of_claim(claim_id: str) -> Experiment | None:
    return next((each for each in EXPERIMENTS if claim_id in each.judges), None)


def named(name: str) -> Experiment:
    """Raises LabError."""
    experiment = next((each for each in EXPERIMENTS if each.name == name), None)
    if experiment is None:
        known = ", ".join(each.name for each in EXPERIMENTS)
        raise LabError(f"There is no experiment '{quote(name)}'.", f"Choose one of: {known}.")
    return experiment


def start(experiment: Experiment) -> list[RunDir]:
    """Both runs, in the queue. Raises LabError, and leaves none behind then."""
    checked: list[CheckedRun] = []
    for spec in experiment.specs():
        checked.append(same_commits.check(spec, checked[0] if checked else None))
    tag = f"{TAG}{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    runs: list[RunDir] = []
    try:
        for each in checked:
            runs.append(actions.create_run_dir(each))
            index.update_labels(runs[-1], tags=tag)
    except LabError:
        for run in runs:
            actions.delete(run)
        raise
    for run in runs:
        actions.submit(run)
    return runs


def forecast_s(experiment: Experiment) -> float | None:
    """Seconds of both runs by the planner's forecast; None where it has none. Raises LabError."""
    total = 0.0
    for spec in experiment.specs():
        runtime: RuntimeForecast | None = planner.estimate(spec, shadow=False, time=True).runtime
        if runtime is None:
            return None
        total += runtime.whole_s
    return total


def newest_pair(experiment: Experiment) -> list[RunDir]:
    """The runs of the last time it was started, in their order; none if never."""
    by_tag: dict[str, list[RunDir]] = {}
    for entry in index.entries():
        for tag in entry.tags:
            if tag.startswith(f"{TAG}{experiment.name}-"):
                by_tag.setdefault(tag, []).append(paths.run_dir(entry.id))
    if not by_tag:
        return []
    order = {name: position for position, name in enumerate(_names(experiment))}
    return sorted(by_tag[max(by_tag)], key=lambda run: order.get(index.entry(run).name, 0))


def _names(experiment: Experiment) -> list[str]:
    return [str(spec["name"]) for spec in experiment.specs()]


def finding_of(claim: Claim) -> Finding | None:
    """What this machine's experiment says of the claim; None where it was never run."""
    experiment = of_claim(claim.id)
    runs = newest_pair(experiment) if experiment else []
    if experiment is None or len(runs) < 2:
        return None
    states = [index.entry(run).status for run in runs]
    if not all(state.has_ended for state in states):
        done = sum(state.has_ended for state in states)
        return Finding("–", Basis.NOT_YET, Ruling.OPEN, f"testing … {done} of 2 runs done")
    if any(state.state != "done" for state in states):
        ends = ", ".join(state.state for state in states)
        return Finding("–", Basis.NOT_YET, Ruling.OPEN, f"the test did not finish: {ends}")
    try:
        finding = experiment.judges[claim.id](claim, runs[0], runs[1])
    except LabError as error:
        return Finding("–", Basis.NOT_YET, Ruling.OPEN, f"the test said nothing: {error.message}")
    return _with_origin(finding, experiment, runs)


def _with_origin(finding: Finding, experiment: Experiment, runs: list[RunDir]) -> Finding:
    ended = number((read_object(runs[-1].result) or {}).get("ended")) or 0.0
    return dataclasses.replace(
        finding,
        note=experiment.question,
        date=time.strftime("%Y-%m-%d", time.localtime(ended)),
        machine=evidence.machine_in_words(),
        runs=tuple(run.id for run in runs),
    )
