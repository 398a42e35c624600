"""From the contestants of a race to its runs in the queue: checks, the ladder, one forecast.

Everything is checked before anything starts. The ladder of learning rates: short runs of each
contestant on PROBE_SHARE of the budget, around the rate that it has anyway; the best rate is
trained beside that one, by every seed. All runs exist from the start; the supervisor gives the
tuned ones their rate (`lab/runs/ladder.py`), so that no page has to stay open.
"""

from __future__ import annotations

import copy
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lab import paths
from lab.checked_run import CheckedRun
from lab.compare import evidence, race_file
from lab.compare.race import BUDGETS, MAX_RUNS, PROBE_TAG, Budget, RaceContestant
from lab.compare.race_file import DEFAULT, PROBE, TUNED, Race, RaceRun
from lab.errors import LabError, Problem, SpecError
from lab.forecasts import Forecast
from lab.formatting import quantity
from lab.paths import RunDir
from lab.preflight import same_commits
from lab.runs import actions, index, ladder
from lab.runs.ladder import Ladder
from lab.spec import RunSpec

PROBE_SHARE = 0.3  # of the budget
LADDERS = (0, 3, 5)  # short runs a contestant
RUNG = 10**0.5  # between two rates of a ladder


@dataclass(frozen=True)
class PlannedRun:
    """A run of the race that could start. A tuned one gets its rate from the probes."""

    contestant: str
    seed: int
    role: str
    checked: CheckedRun

    @property
    def spec(self) -> RunSpec:
        return self.checked.spec

    @property
    def requested(self) -> Any:
        return self.checked.requested

    @property
    def forecast(self) -> Forecast:
        return self.checked.forecast


@dataclass(frozen=True)
class RaceForecast:
    """Of the whole race: `seconds` of its runs one after the other (None where one is not known),
    the largest peak, and the disk of all together."""

    runs: int = 0
    seconds: float | None = None
    peak_bytes: int = 0
    disk_bytes: int = 0
    is_measured: bool = False


@dataclass(frozen=True)
class RaceTerms:
    """What a race is about, for its file."""

    title: str = ""
    question: str = ""
    ready: str = ""
    started_by: str = "command line"
    ticket: str = ""
    budget: Budget | None = None
    ladder: int = 0
    contestants: tuple[RaceContestant, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tests: tuple[race_file.ClaimTest, ...] = ()
    score_set: str = ""
    score_most: int = 50
    spec: Mapping[str, Any] = field(default_factory=dict)


def rates(default: float, count: int) -> list[float]:
    """`count` learning rates around `default`, each RUNG times the one before, in two digits; the
    default itself among them, and none above 1."""
    middle = count // 2
    return [
        default if step == middle else min(1.0, float(f"{default * RUNG ** (step - middle):.1e}"))
        for step in range(count)
    ]


def check(specs: dict[str, dict[str, Any]], seeds: int, rungs: int = 0) -> list[PlannedRun]:
    """The runs of a race: the probes, then seed by seed. Raises SpecError with the problems of all
    contestants, each under its name."""
    check_number(len(specs), seeds, rungs)
    problems: list[Problem] = []
    checked: dict[str, CheckedRun] = {}
    for name, spec in specs.items():
        try:
            checked[name] = same_commits.check(spec, next(iter(checked.values()), None))
        except SpecError as error:
            problems += [
                Problem(f"{name}: {problem.field}", problem.message) for problem in error.problems
            ]
    planned = plan(checked, seeds, rungs)
    need = forecast(planned).disk_bytes
    home = next(folder for folder in [paths.home(), *paths.home().parents] if folder.exists())
    free = shutil.disk_usage(home).free
    if need > free:
        problems.append(
            Problem(
                "train.save_steps",
                f"not enough disk: all runs together may need {need / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free. Set train.save_steps to 0, or race fewer.",
            )
        )
    if problems:
        raise SpecError(problems)
    return planned


def check_number(contestants: int, seeds: int, rungs: int) -> None:
    """Raises LabError for a ladder that there is not, or more runs than a race has."""
    if rungs not in LADDERS:
        raise LabError(
            f"A ladder of {quantity(rungs, 'rate')} cannot be.",
            f"Choose one of: {', '.join(map(str, LADDERS))}; 0 is no ladder.",
        )
    runs = count_runs(contestants, seeds, rungs)
    if not 1 <= runs <= MAX_RUNS:
        raise LabError(
            f"{quantity(seeds, 'seed')} of {quantity(contestants, 'method')}"
            + (f" with a ladder of {rungs}" if rungs else "")
            + f" are {quantity(runs, 'run')}.",
            f"A race has 1 to {MAX_RUNS}.",
        )


def count_runs(contestants: int, seeds: int, rungs: int) -> int:
    return contestants * (seeds if rungs == 0 else rungs + 2 * seeds)


def plan(checked: Mapping[str, CheckedRun], seeds: int, rungs: int) -> list[PlannedRun]:
    """The runs in the order of the queue. A tuned run has its contestant's rate until the probes
    have ended."""
    planned = [
        PlannedRun(name, run.spec.train.seed, PROBE, _probe(run, rate))
        for name, run in checked.items()
        for rate in rates(float(run.spec.train.learning_rate), rungs)
    ]
    roles = (TUNED, DEFAULT) if rungs else (DEFAULT,)
    for seed_index in range(seeds):
        for name, run in checked.items():
            for role in roles:
                seeded = with_seed(run, seed_index, seeds)
                if role == TUNED:
                    seeded = _renamed(seeded, f"{seeded.spec.name} · best of {rungs}")
                planned.append(PlannedRun(name, seeded.spec.train.seed, role, seeded))
    return planned


def with_seed(checked: CheckedRun, seed_index: int, seeds: int) -> CheckedRun:
    """The run with another seed; nothing else of it depends on that."""
    if seeds == 1:
        return checked
    seed = (checked.spec.train.seed + seed_index) % 2**32
    checked = _with_train(checked, seed=seed)
    return _renamed(checked, f"{checked.spec.name} · seed {seed}")


def _with_train(checked: CheckedRun, **changes: Any) -> CheckedRun:
    requested = copy.deepcopy(checked.requested)
    requested["train"] = {**requested.get("train", {}), **changes}
    train = replace(checked.spec.train, **changes)
    return replace(checked, spec=replace(checked.spec, train=train), requested=requested)


def _renamed(checked: CheckedRun, name: str) -> CheckedRun:
    return replace(checked, spec=replace(checked.spec, name=name[: index.MAX_NAME_CHARS]))


def _probe(checked: CheckedRun, rate: float) -> CheckedRun:
    """A short run at `rate`: measured at its end, without samples and checkpoints."""
    train = checked.spec.train
    budget: dict[str, Any] = {
        name: _share(getattr(train, name)) for name in BUDGETS.values() if getattr(train, name)
    }
    probe = _with_train(
        checked,
        learning_rate=rate,
        eval_steps=0,
        save_steps=0,
        sample_steps=0,
        forgetting_probe="off",
        **(budget or {"epochs": train.epochs * PROBE_SHARE}),
    )
    return replace(
        _renamed(probe, f"{checked.spec.name} · probe {rate:g}"),
        forecast=_shorter(checked.forecast),
    )


def _share(amount: float) -> float | int:
    return max(1, round(amount * PROBE_SHARE)) if isinstance(amount, int) else amount * PROBE_SHARE


def _shorter(forecast: Forecast) -> Forecast:
    """What is predicted of a probe: a share of the training, of the evaluations the base's and the
    last one, no samples and no checkpoints."""
    runtime, disk = forecast.runtime, forecast.disk
    if runtime is not None:
        runtime = replace(
            runtime,
            steps=max(1, round(runtime.steps * PROBE_SHARE)),
            tokens=round(runtime.tokens * PROBE_SHARE),
            seconds=runtime.seconds * PROBE_SHARE,
            evaluating_s=runtime.evaluating_s * PROBE_SHARE,
            sampling_s=0.0,
            probing_s=0.0,
        )
    if disk is not None:
        disk = replace(disk, checkpoint=0, total=disk.artifact)
    return replace(forecast, runtime=runtime, disk=disk)


def forecast(planned: list[PlannedRun]) -> RaceForecast:
    """All runs one after the other, as the queue starts them. Where the ladder finds the default
    rate best, its tuned runs are not trained, and the race takes less."""
    runtimes = [run.forecast.runtime for run in planned]
    known = [runtime for runtime in runtimes if runtime is not None]
    return RaceForecast(
        runs=len(planned),
        seconds=sum(runtime.whole_s for runtime in known) if len(known) == len(runtimes) else None,
        peak_bytes=max((run.forecast.memory.needed_bytes for run in planned), default=0),
        disk_bytes=sum(run.forecast.disk.total for run in planned if run.forecast.disk),
        is_measured=bool(known) and all(runtime.is_measured for runtime in known),
    )


def unfairness(budget: Budget | None, checked: Mapping[str, CheckedRun]) -> str:
    """What an equal number of steps gives to whom; "" for a budget that is equal in work or time,
    or where nothing is known."""
    if budget is None or budget.axis not in ("steps", "tokens"):
        return ""
    times = {
        name: run.forecast.runtime.seconds
        for name, run in checked.items()
        if run.forecast.runtime is not None and run.forecast.runtime.seconds > 0
    }
    if len(times) < 2:
        return ""
    slow, fast = max(times, key=lambda name: times[name]), min(times, key=lambda name: times[name])
    ratio = times[slow] / times[fast]
    if ratio < 1.02:
        return ""
    return (
        "Methods need different time and memory per step: equal "
        f"{budget.axis} favour {slow}, which may take {ratio:.1f} times as long as {fast}. "
        "Minutes or FLOPs are equal work."
    )


def started_by_ticket(ticket: str) -> str | None:
    """The id of the race that this form has started already."""
    return next((race.id for race in race_file.all_races() if race.ticket == ticket != ""), None)


def start(planned: list[PlannedRun], terms: RaceTerms | None = None) -> tuple[str, list[RunDir]]:
    """(the race's id, its runs, in the queue). Raises LabError, and leaves nothing behind then."""
    terms = terms or RaceTerms()
    letters = "".join(random.SystemRandom().choices(paths.LETTERS, k=4))
    race = f"race-{time.strftime('%Y%m%d-%H%M%S')}-{letters}"
    runs: list[RunDir] = []
    try:
        for each in planned:
            run = actions.create_run_dir(each.checked)
            runs.append(run)
            tags = f"{race}, {PROBE_TAG}" if each.role == PROBE else race
            index.update_labels(run, tags=tags)
            if each.role == TUNED:
                ladder.write(run, _ladder_of(each, planned, runs))
        race_file.write(_record(race, planned, runs, terms))
    except (LabError, OSError):
        for run in runs:
            actions.delete(run)
        raise
    for run in runs:
        actions.submit(run)
    return race, runs


def _ladder_of(tuned: PlannedRun, planned: list[PlannedRun], runs: list[RunDir]) -> Ladder:
    """The probes come first in a plan, so their runs exist by now."""
    probes = {
        run.id: float(each.spec.train.learning_rate)
        for each, run in zip(planned, runs, strict=False)
        if each.role == PROBE and each.contestant == tuned.contestant
    }
    return Ladder(probes, float(tuned.spec.train.learning_rate))


def _record(race: str, planned: list[PlannedRun], runs: list[RunDir], terms: RaceTerms) -> Race:
    spec = planned[0].spec
    names = list(dict.fromkeys(each.contestant for each in planned))
    listed = {each.name: each for each in terms.contestants}
    methods = {each.contestant: str(each.spec.method["name"]) for each in planned}
    return Race(
        id=race,
        title=terms.title or f"{' against '.join(names[:3])}{' …' if len(names) > 3 else ''}",
        question=terms.question,
        ready=terms.ready,
        started_by=terms.started_by,
        ticket=terms.ticket,
        created=time.time(),
        base=spec.model,
        dataset=spec.data.dataset,
        budget=terms.budget,
        seeds=len({each.seed for each in planned}),
        ladder=terms.ladder,
        contestants=tuple(listed.get(name, RaceContestant(name, methods[name])) for name in names),
        runs=tuple(
            RaceRun(run.id, each.contestant, each.seed, each.role)
            for each, run in zip(planned, runs, strict=True)
        ),
        left_out=terms.left_out,
        notes=terms.notes,
        tests=terms.tests,
        score_set=terms.score_set,
        score_most=terms.score_most,
        spec=terms.spec,
        forecast_s=forecast(planned).seconds or 0.0,
        code=evidence.code_hash(),
        versions=evidence.versions(),
        machine=evidence.machine_in_words(),
    )
