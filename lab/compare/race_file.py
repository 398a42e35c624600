"""A race as it lies on the disk: `LAB_HOME/races/ID.json`, written once by who starts it.

How far a race is, and what it has shown, is read from its runs; the file only says which they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import paths
from lab.atomic_files import finite_number, read_object, write_json
from lab.checked_run import read_forecast
from lab.compare.race import RACE_ID, Budget, RaceContestant
from lab.dataclass_json import read
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import ladder
from lab.runs.run_progress import run_progress
from lab.runs.status import Status, status
from lab.schema import quote

# What a run is for: the rate of its method, a short run of the ladder, or the ladder's best rate.
DEFAULT, PROBE, TUNED = ROLES = ("default", "probe", "tuned")


@dataclass(frozen=True)
class ClaimTest:
    """How a race answers a claim: `figure` of contestant `of` is `expect` ("lower", "higher") than
    that of `than`; or, with a `ratio`, between its two numbers times as large. A learning rate
    without a `than` lies between the two numbers itself. `less`: another two contestants, whose
    difference is taken off first. `sentence`: what is claimed, in words."""

    claim: str = ""
    figure: str = ""
    of: str = ""
    than: str = ""
    expect: str = "lower"
    ratio: tuple[float, ...] = ()
    less: tuple[str, ...] = ()
    sentence: str = ""


@dataclass(frozen=True)
class RaceRun:
    run: str = ""
    contestant: str = ""
    seed: int = 0
    role: str = DEFAULT


@dataclass(frozen=True)
class Race:
    """`ladder`: short runs a contestant, 0 without. `started_by`: the page or the command line.
    `forecast_s`: what all runs together were predicted to take."""

    id: str = ""
    title: str = ""
    question: str = ""
    ready: str = ""
    started_by: str = ""
    ticket: str = ""  # of the form that started it: clicking twice gives one race
    created: float = 0.0
    base: str = ""
    dataset: str = ""
    budget: Budget | None = None
    seeds: int = 1
    ladder: int = 0
    contestants: tuple[RaceContestant, ...] = ()
    runs: tuple[RaceRun, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tests: tuple[ClaimTest, ...] = ()
    score_set: str = ""  # questions that the results are scored on in the end
    score_most: int = 50
    spec: Mapping[str, Any] = field(default_factory=dict)
    forecast_s: float = 0.0
    code: str = ""  # hash of the sources that started it
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""


@dataclass(frozen=True)
class RunCell:
    """One run of a race as it is now. `is_needless`: the ladder chose the rate of another run."""

    race_run: RaceRun
    status: Status
    loss: float | None = None
    is_needless: bool = False


def folder() -> Path:
    return paths.home() / "races"


def write(race: Race) -> None:
    write_json(paths.make_folder(folder()) / f"{race.id}.json", {"v": 1, **asdict(race)})


def load(race_id: str) -> Race:
    """Raises LabError for an id that names no race."""
    if not RACE_ID.fullmatch(race_id):
        raise LabError(f"'{quote(race_id)}' is not a race.", "Write race-DATE-TIME-LETTERS.")
    race = read(Race, read_object(folder() / f"{race_id}.json"))
    if race is None or race.id != race_id:
        raise LabError(f"There is no race {race_id}.", "The page Race lists all races.")
    return race


def all_races() -> list[Race]:
    """Newest first."""
    races = []
    for file in sorted(folder().glob("race-*.json"), reverse=True):
        race = read(Race, read_object(file)) if RACE_ID.fullmatch(file.stem) else None
        if race is not None and race.id == file.stem:
            races.append(race)
    return races


def cells(race: Race) -> list[RunCell]:
    """Every run of the race as it is now, in the order of its file."""
    result = []
    for each in race.runs:
        run = _run(each)
        if run is None:
            result.append(RunCell(each, Status("deleted", message="The run was deleted.")))
            continue
        result.append(
            RunCell(each, status(run), ladder.final_loss_of(run.id), ladder.is_needless(run))
        )
    return result


def _run(each: RaceRun) -> RunDir | None:
    try:
        return paths.run_dir(each.run)
    except LabError:
        return None


def has_ended(now: list[RunCell]) -> bool:
    return all(cell.status.has_ended for cell in now)


def seconds_left(race: Race, now: list[RunCell]) -> float | None:
    """Of all runs that have not ended, one after the other; None where no forecast is kept."""
    total = 0.0
    for cell in now:
        if cell.status.has_ended:
            continue
        run = _run(cell.race_run)
        left = run_progress(run).left_s if run is not None and cell.status.is_active else None
        if left is None and run is not None:
            left = _forecast_s(run)
        if left is None:
            return None
        total += left
    return total


def _forecast_s(run: RunDir) -> float | None:
    runtime = read_forecast(run).runtime
    return finite_number(runtime.whole_s) if runtime else None


def compared_runs(race: Race) -> list[RunDir]:
    """The runs whose results are compared: no probes, none that is needless or deleted."""
    runs = [_run(each) for each in race.runs if each.role != PROBE]
    return [run for run in runs if run is not None and not ladder.is_needless(run)]


def chosen_rates(race: Race) -> dict[str, float]:
    """The learning rate that the ladder chose, by contestant, once it has."""
    rates = {}
    for each in race.runs:
        run = _run(each) if each.role == TUNED else None
        choice = ladder.choice_of(run) if run is not None else None
        if choice is not None:
            rates[each.contestant] = choice.rate
    return rates
