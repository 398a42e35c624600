"""What the runs of a race score on its set of questions: `LAB_HOME/races/ID.scores.json`.

Scoring loads models, so it is done by the command line when the race has ended, never by a page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.atomic_files import read_object, write_json
from lab.compare import race_file
from lab.compare.race_file import Race
from lab.dataclass_json import read
from lab.runs.status import status

BASE = "base"


@dataclass(frozen=True)
class RaceScores:
    """`models`: the figures of `lab.evals.score` by run; those of the base under BASE."""

    dataset: str = ""
    questions: int = 0
    models: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def file_of(race: Race) -> Path:
    return race_file.folder() / f"{race.id}.scores.json"


def scores_of(race: Race) -> RaceScores:
    """Without figures where nothing was scored."""
    return read(RaceScores, read_object(file_of(race))) or RaceScores()


def is_due(race: Race) -> bool:
    return bool(race.score_set) and not file_of(race).is_file()


def measure(
    race: Race, after_answer: Callable[[str, int, int], object] = lambda model, done, total: None
) -> RaceScores:
    """Score the runs that are done and their base, and keep that. Raises LabError."""
    from lab.chat.models import parse
    from lab.evals.score import score

    runs = [run for run in race_file.compared_runs(race) if status(run).state == "done"]
    if not runs:
        return RaceScores(race.score_set)
    names = [parse(f"run:{run.id}") for run in runs]
    sheet = score(names, race.score_set, race.score_most, after_answer=after_answer)
    models = {
        BASE if name.startswith("base:") else name.removeprefix("run:"): scored.figures
        for name, scored in sheet.models.items()
    }
    scores = RaceScores(race.score_set, len(sheet.questions), models)
    write_json(file_of(race), {"v": 1, **asdict(scores)})
    return scores
