"""What a check hands on: the run that would start, or the problems; and how a run reads it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.atomic_files import part, read_object
from lab.errors import Problem, SpecError
from lab.forecasts import DatasetStats, Forecast
from lab.paths import RunDir
from lab.spec import RunSpec


@dataclass(frozen=True)
class CheckedRun:
    """`spec` has every "auto" resolved; `requested` is the JSON that was asked for."""

    spec: RunSpec
    requested: Any
    stats: DatasetStats = DatasetStats()
    forecast: Forecast = Forecast()

    def estimate_json(self) -> dict[str, Any]:
        """What the run keeps in estimate.json."""
        return {**self.forecast.to_json(), "facts": self.stats.to_json()}


@dataclass(frozen=True)
class CheckResult:
    """All problems at once, or the run."""

    problems: tuple[Problem, ...] = ()
    run: CheckedRun | None = None

    def checked(self) -> CheckedRun:
        """The run. Raises SpecError with all problems."""
        if self.run is None:
            raise SpecError(list(self.problems))
        return self.run

    def to_json(self) -> dict[str, Any]:
        stored: dict[str, Any] = {"problems": [problem.to_json() for problem in self.problems]}
        if self.run is not None:
            stored |= {
                "spec": self.run.spec.to_json(),
                "requested": self.run.requested,
                "facts": self.run.stats.to_json(),
                "estimate": self.run.forecast.to_json(),
            }
        return stored

    @staticmethod
    def from_json(stored: dict[str, Any]) -> CheckResult:
        problems = tuple(Problem(**problem) for problem in stored["problems"])
        if problems:
            return CheckResult(problems)
        return CheckResult(
            run=CheckedRun(
                RunSpec.from_stored(stored["spec"]),
                stored["requested"],
                DatasetStats.from_json(stored["facts"]) or DatasetStats(),
                Forecast.from_json(stored["estimate"]) or Forecast(),
            )
        )


def read_forecast(run: RunDir) -> Forecast:
    """The forecast that `run` was admitted with; without figures where its file is gone."""
    return Forecast.from_json(read_object(run.estimate)) or Forecast()


def read_stats(run: RunDir) -> DatasetStats:
    """What was known of the data of `run` when it was checked."""
    return DatasetStats.from_json(part(read_object(run.estimate), "facts")) or DatasetStats()


def damaged_keys(run: RunDir) -> list[str]:
    """The keys of estimate.json that hold something else than they should; readers go without."""
    stored = read_object(run.estimate)
    damaged: list[str] = []
    Forecast.from_json(stored, damaged)
    DatasetStats.from_json(part(stored, "facts"), damaged)
    return damaged
