"""The contestants of a race with the runs that ended well."""

from __future__ import annotations

from dataclasses import dataclass

from lab.compare.contestants import Contestant
from lab.compare.race_file import PROBE, TUNED, Race
from lab.compare.run_figures import RunFigures, run_figures
from lab.errors import LabError
from lab.paths import RunDir, run_dir
from lab.runs import ladder


@dataclass(frozen=True, eq=False)
class Finisher:
    """A contestant with the runs that ended well, by its name in the race."""

    name: str
    role: str
    contestant: Contestant


def finishers(race: Race) -> list[Finisher]:
    """In the order of the race; the ladder's best rate beside the default as one of its own."""
    groups: dict[tuple[str, str], list[RunFigures]] = {}
    for each in race.runs:
        run = existing_run(each.run)
        if each.role == PROBE or run is None or ladder.is_needless(run):
            continue
        figures = run_figures(run)
        if figures.entry.status.state == "done":
            groups.setdefault((each.contestant, each.role), []).append(figures)
    return [
        Finisher(
            name if role != TUNED else f"{name}, best of {race.ladder}",
            role,
            Contestant(tuple(sorted(group, key=lambda figures: figures.seed))),
        )
        for (name, role), group in groups.items()
    ]


def existing_run(run_id: str) -> RunDir | None:
    """None for a run that was deleted."""
    try:
        return run_dir(run_id)
    except LabError:
        return None
