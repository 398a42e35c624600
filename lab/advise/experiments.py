"""Small pairs of runs that put a claim to the test on this machine, and what they have shown.

The runs of an experiment go through the queue like any others and carry its tag. Once both have
ended, what they say is stored in LAB_HOME/experiments with date, machine and versions, and stays
when the runs are deleted. One seed each: an indication. Races with several seeds leave evidence,
which is worth more.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import dataclass_json, paths
from lab.advise import experiment_judges as judges
from lab.advise.claims import Claim, Finding
from lab.advise.claims import get as get_claim
from lab.atomic_files import finite_number, part, read_object, write_json
from lab.checked_run import CheckedRun
from lab.compare import evidence
from lab.errors import LabError
from lab.forecasts import RuntimeForecast
from lab.models import catalog
from lab.paths import RunDir
from lab.preflight import same_commits
from lab.preflight.client import planner
from lab.runs import actions, index
from lab.runs.status import status
from lab.schema import quote

TAG = "experiment-"


@dataclass(frozen=True)
class Experiment:
    """`changes`: what each of the two runs, called `names`, has of its own; `shared`: what both
    have."""

    name: str
    title: str
    question: str
    shared: dict[str, Any]
    names: tuple[str, str]
    changes: tuple[dict[str, Any], dict[str, Any]]
    judges: dict[str, Callable[[Claim, RunDir, RunDir], Finding]]

    def specs(self) -> list[dict[str, Any]]:
        specs = []
        for name, changes in zip(self.names, self.changes, strict=True):
            spec = copy.deepcopy(self.shared)
            for section, values in changes.items():
                spec[section] = spec.get(section, {}) | values
            spec["name"] = f"{self.title}: {name}"
            specs.append(spec)
        return specs


@dataclass(frozen=True)
class ExperimentOutcome:
    """What is stored of a finished experiment. `tag`: of its two runs; `findings`: by claim."""

    tag: str = ""
    date: str = ""
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    findings: Mapping[str, Finding] = field(default_factory=dict)


BUILT_IN = f"builtin:{catalog.BUILT_IN[0].name}"
_DATA = {"dataset": "builtin:persona-chats", "eval_fraction": 0.2, "max_length": 192,
         "packing": "off"}  # fmt: skip
_TRAIN = {"batch_size": 2, "max_steps": 90, "eval_steps": 30, "save_steps": 0, "sample_steps": 0}
_SHORT = {**_TRAIN, "max_steps": 60, "adapter_precision": "float32"}
EXPERIMENTS = (
    Experiment(
        "full-lora",
        "Full against LoRA",
        "The same 90 steps on short chats, each at its method's learning rate, with the "
        "forgetting probe.",
        {"model": BUILT_IN, "data": _DATA, "train": {**_TRAIN, "forgetting_probe": "on"}},
        ("full", "LoRA"),
        ({"method": {"name": "full"}}, {"method": {"name": "lora"}}),
        {
            "D4": judges.early_and_late,
            "B12": judges.within_percents,
            "A10": judges.few_examples,
            "A5": judges.forgetting,
            "C20": judges.forgetting,
            "D1": judges.ratio_of_full,
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
        ("off", "on"),
        (
            {"train": {"activation_checkpointing": "off"}},
            {"train": {"activation_checkpointing": "on"}},
        ),
        {"C5": judges.slower},
    ),
    Experiment(
        "targets",
        "All linear layers or q and v",
        "The same 60 steps with LoRA of rank 8 on all linear layers and of rank 64 on q and v, "
        "alpha twice the rank.",
        {"model": BUILT_IN, "data": _DATA, "method": {"name": "lora"}, "train": _SHORT},
        ("rank 8 on all", "rank 64 on q and v"),
        (
            {"method": {"rank": 8, "alpha": 16.0, "target_modules": "all-linear"}},
            {"method": {"rank": 64, "alpha": 128.0, "target_modules": ["q_proj", "v_proj"]}},
        ),
        {"C11": judges.targets},
    ),
    Experiment(
        "spectra",
        "Singular values and the rank",
        "The same 60 steps with LoRA of rank 8 and of rank 64, alpha twice the rank: whether the "
        "singular values of the second say that the first is enough, and whether it was.",
        {"model": BUILT_IN, "data": _DATA, "method": {"name": "lora"}, "train": _SHORT},
        ("rank 8", "rank 64"),
        ({"method": {"rank": 8, "alpha": 16.0}}, {"method": {"rank": 64, "alpha": 128.0}}),
        {"C12": judges.spectra},
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
    """Both runs, in the queue. Where they are under way already, by another click or another
    window, these. Raises LabError, and leaves none behind then."""
    with _lock(experiment):
        runs = newest_pair(experiment)
        return runs if is_under_way(runs) else _start(experiment)


@contextlib.contextmanager
def _lock(experiment: Experiment) -> Iterator[None]:
    file = _file(experiment).with_suffix(".lock")
    paths.make_folder(file.parent)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _start(experiment: Experiment) -> list[RunDir]:
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


def stop(experiment: Experiment) -> None:
    """End what is under way of it, with nothing saved."""
    for run in newest_pair(experiment):
        with contextlib.suppress(LabError):  # it ended by itself meanwhile
            if not status(run).has_ended:
                actions.command(run, "cancel")


def is_under_way(runs: list[RunDir]) -> bool:
    return any(not index.entry(run).status.has_ended for run in runs)


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
    """The runs of the last time it was started, in their order; none if never, or if they were
    deleted."""
    by_tag: dict[str, list[RunDir]] = {}
    for entry in index.entries():
        for tag in entry.tags:
            if tag.startswith(f"{TAG}{experiment.name}-"):
                by_tag.setdefault(tag, []).append(paths.run_dir(entry.id))
    if not by_tag:
        return []
    names = [str(spec["name"]) for spec in experiment.specs()]
    order = {name: position for position, name in enumerate(names)}
    return sorted(by_tag[max(by_tag)], key=lambda run: order.get(index.entry(run).name, 0))


def finding_of(claim: Claim) -> Finding | None:
    """What this machine's experiment says of the claim; None where it was never run. The first look
    after its end stores it."""
    experiment = of_claim(claim.id)
    if experiment is None:
        return None
    runs = newest_pair(experiment)
    outcome = stored(experiment)
    if outcome is not None and (len(runs) < 2 or _tag_of(runs[0]) == outcome.tag):
        return outcome.findings.get(claim.id)
    if len(runs) < 2:
        return None
    states = [index.entry(run).status for run in runs]
    if not all(state.has_ended for state in states):
        done = sum(state.has_ended for state in states)
        return Finding(detail=f"testing … {done} of 2 runs done")
    if any(state.state != "done" for state in states):
        if outcome is not None:
            return outcome.findings.get(claim.id)
        ends = ", ".join(state.state for state in states)
        return Finding(detail=f"the test did not finish: {ends}")
    return _store(experiment, runs).findings.get(claim.id)


def stored(experiment: Experiment) -> ExperimentOutcome | None:
    outcome = dataclass_json.read(ExperimentOutcome, read_object(_file(experiment)))
    return outcome if outcome is not None and outcome.tag else None


def _file(experiment: Experiment) -> Path:
    return paths.home() / "experiments" / f"{experiment.name}.json"


def _tag_of(run: RunDir) -> str:
    return next((tag for tag in index.entry(run).tags if tag.startswith(TAG)), "")


def _store(experiment: Experiment, runs: list[RunDir]) -> ExperimentOutcome:
    ended = finite_number((read_object(runs[-1].result) or {}).get("ended")) or 0.0
    outcome = ExperimentOutcome(
        _tag_of(runs[0]),
        time.strftime("%Y-%m-%d", time.localtime(ended)),
        evidence.machine_in_words(),
        part(read_object(runs[-1].environment), "packages"),
        tuple(run.id for run in runs),
    )
    findings = {
        claim_id: dataclasses.replace(
            _judged(experiment, claim_id, runs),
            note=experiment.question,
            date=outcome.date,
            machine=outcome.machine,
            runs=outcome.runs,
        )
        for claim_id in experiment.judges
    }
    outcome = dataclasses.replace(outcome, findings=findings)
    paths.make_folder(_file(experiment).parent)
    write_json(_file(experiment), {"v": 1, **dataclasses.asdict(outcome)})
    return outcome


def _judged(experiment: Experiment, claim_id: str, runs: list[RunDir]) -> Finding:
    try:
        return experiment.judges[claim_id](get_claim(claim_id), runs[0], runs[1])
    except LabError as error:
        return Finding(detail=f"the test said nothing: {error.message}")


def state() -> tuple[tuple[str, bool], ...]:
    """(id, whether it has ended) of every experiment's runs."""
    pairs = [newest_pair(experiment) for experiment in EXPERIMENTS]
    return tuple((run.id, index.entry(run).status.has_ended) for pair in pairs for run in pair)
