"""What is compared: a run, or several runs that differ in their seed alone."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.atomic_files import part
from lab.compare.paired import PairedDifference, mean_interval, paired_difference
from lab.compare.run_figures import RunFigures, run_figures
from lab.paths import RunDir

MAX_SHOWN = 12  # contestants that are shown together
SEED_SUFFIX = re.compile(r" · seed [0-9]+$")
Names = Callable[["Contestant"], str]


@dataclass(frozen=True, eq=False)
class Contestant:
    """One or more runs of the same settings, in the order of their seeds."""

    runs: tuple[RunFigures, ...]

    @property
    def first(self) -> RunFigures:
        return self.runs[0]

    @property
    def id(self) -> str:
        return self.first.id

    @property
    def name(self) -> str:
        """The name that its runs share; the method's where they have none."""
        entry = self.first.entry
        name = SEED_SUFFIX.sub("", entry.name) if len(self.runs) > 1 else entry.name
        return name or entry.method or self.id

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def has_ended(self) -> bool:
        return all(run.entry.status.has_ended for run in self.runs)

    def values(self, key: str) -> list[float]:
        """What each run has of a figure: the field `key` of RunFigures, where it is known."""
        # a run that has made no step yet took no time: that is no figure to compare
        runs = [run for run in self.runs if run.steps or key not in ("seconds", "flops")]
        values = [getattr(run, key) for run in runs]
        return [float(value) for value in values if value is not None]

    def value(self, key: str) -> float | None:
        """The mean over the seeds; None unless every run has the figure."""
        values = self.values(key)
        return sum(values) / len(values) if len(values) == len(self.runs) else None

    def interval(self, key: str) -> tuple[float | None, float | None]:
        """(mean over the seeds, half of its 95 % interval, None for a single seed)."""
        values = self.values(key)
        return mean_interval(np.array(values)) if len(values) == len(self.runs) else (None, None)

    def row_losses(self, *, early: bool = False) -> np.ndarray | None:
        """(S, N) summed losses of each seed on each held-out row, at the newest evaluation, or at
        the first one of several; None where a run did not write them down."""
        losses = [
            None if run.losses is None else run.losses.first if early else run.losses.last
            for run in self.runs
        ]
        rows = [row for row in losses if row is not None]
        same_length = len({len(row) for row in rows}) == 1
        return np.array(rows) if len(rows) == len(losses) and same_length else None


def contestants(runs: Sequence[RunDir]) -> list[Contestant]:
    """The runs in this order, those that differ in their seed alone as one."""
    groups: dict[str, list[RunFigures]] = {}
    for run in runs:
        figures = run_figures(run)
        settings = settings_but_seed(figures.spec)
        same = groups.get(settings, [])
        # the same seed twice is the same run twice, not another seed
        key = settings if figures.seed not in [run.seed for run in same] else figures.id
        groups.setdefault(key, []).append(figures)
    return [Contestant(tuple(sorted(group, key=lambda run: run.seed))) for group in groups.values()]


def settings_but_seed(spec: dict[str, Any]) -> str:
    """The settings of a run as one text, without its name, its seed and when it was made."""
    settings = {key: copy.deepcopy(spec.get(key)) for key in ("model", "method", "data", "train")}
    settings["init_from_run"] = spec.get("init_from_run") or ""
    part(settings, "train").pop("seed", None)
    return json.dumps(settings, sort_keys=True, default=str)


def difference_by_row(
    first: Contestant, second: Contestant, *, early: bool = False
) -> PairedDifference | None:
    """The first's evaluation loss less the second's, paired by held-out row; None where a run did
    not write its rows' losses down, or they are of other rows. `early`: at the first evaluation."""
    rows = [contestant.row_losses(early=early) for contestant in (first, second)]
    terms = [run.losses for contestant in (first, second) for run in contestant.runs if run.losses]
    if rows[0] is None or rows[1] is None or not same_rows(terms):
        return None
    return paired_difference(
        rows[0],
        rows[1],
        terms[0].tokens,
        terms[0].sources,
        same_seeds=len(first.runs) > 1 and first.seeds == second.seeds,
    )


def same_rows(losses: Sequence[Any]) -> bool:
    """Whether all are of the same held-out rows."""
    return len({(each.rows_hash, len(each.tokens)) for each in losses}) == 1


def difference_to_base(contestant: Contestant) -> PairedDifference | None:
    """Its evaluation loss less the base's, paired by held-out row."""
    rows, losses = contestant.row_losses(), contestant.first.losses
    if rows is None or losses is None or losses.base is None:
        return None
    return paired_difference(rows, losses.base[None], losses.tokens, losses.sources)
