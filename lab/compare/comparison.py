"""Final figures of runs, with the verdict and whether they may be compared."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lab.compare import scored_rows
from lab.compare.contestants import contestants
from lab.compare.curves import run_curve
from lab.compare.equal_terms import EqualTerms, equal_terms
from lab.compare.run_figures import RunFigures, run_figures
from lab.compare.scored_rows import ScoredSet
from lab.compare.verdict import ComparisonVerdict, verdict
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs.metric_series import series_of

UNITS = {"step": "steps", "tokens": "tokens", "seconds": "s", "flops": "FLOPs"}
AXES = tuple(UNITS)


@dataclass(frozen=True)
class ComparedRun:
    """One run. `common_loss`: its evaluation loss at the largest budget that all runs reached, so
    that a run that trained longer is not praised for it."""

    figures: RunFigures
    common_loss: float | None

    @property
    def name(self) -> str:
        return self.figures.entry.name

    @property
    def method(self) -> str:
        return self.figures.entry.method

    @property
    def state(self) -> str:
        return self.figures.entry.status.state


@dataclass(frozen=True)
class Comparison:
    """`common`: the largest budget that all runs reached, on the axis `by`. In the verdict, runs
    that differ in their seed alone are one."""

    runs: tuple[ComparedRun, ...]
    by: str
    common: float
    terms: EqualTerms
    verdict: ComparisonVerdict
    scores: tuple[ScoredSet, ...]

    @property
    def common_in_words(self) -> str:
        return f"{self.common:,.0f} {UNITS[self.by]}"

    def to_json(self) -> dict[str, Any]:
        """{"runs": figures of each, "by": axis, "at": the common budget, "unequal": [...],
        "remarks": [...], "verdict": {...}, "scores": [...]}."""
        return {
            "runs": [
                figures_json(each.figures)
                | {"at": {"value": self.common, "eval_loss": each.common_loss}}
                for each in self.runs
            ],
            "by": self.by,
            "at": self.common,
            "unequal": list(self.terms.unequal),
            "remarks": list(self.terms.remarks),
            "verdict": dataclasses.asdict(self.verdict),
            "scores": [scored_rows.as_json(scored) for scored in self.scores],
        }


def first_train_loss(run: RunDir) -> float | None:
    losses = series_of(run).train.get("train/loss")
    return float(losses[0]) if len(losses) and math.isfinite(losses[0]) else None


def figures_json(figures: RunFigures) -> dict[str, Any]:
    """The figures of one run, from what its worker wrote; None where it wrote nothing."""
    return {
        "id": figures.run.id,
        "name": figures.entry.name,
        "model": figures.entry.model,
        "method": figures.entry.method,
        "seed": figures.seed,
        "state": figures.entry.status.state,
        "trainable": figures.trainable,
        "parameters": figures.parameters,
        "steps": figures.steps,
        "tokens": figures.tokens,
        "loss_tokens": figures.loss_tokens,
        "seconds": figures.seconds,
        "flops": figures.flops,
        "tokens_per_s": figures.tokens_per_s,
        "peak_bytes": figures.peak_bytes,
        "energy_wh": figures.energy_wh,
        "forgetting": figures.forgetting,
        "train_loss": {"first": first_train_loss(figures.run), "last": figures.train_loss},
        "eval_loss": {"base": figures.base_loss, "final": figures.loss},
        "artifact_bytes": figures.artifact_bytes,
        "data_hash": figures.data_hash or None,
        "held_out_hash": figures.held_out_hash or None,
    }


def compare(runs: list[RunDir], by: str = "step") -> Comparison:
    """Raises LabError for an unknown axis."""
    if by not in AXES:
        raise LabError(f"Cannot compare by '{by}'.", f"Choose one of: {', '.join(AXES)}.")
    all_figures = [run_figures(run) for run in runs]
    budgets = [getattr(figures, "steps" if by == "step" else by) for figures in all_figures]
    common = min(budgets, default=0)
    compared = []
    for figures in all_figures:
        at, losses = run_curve(figures, "eval/loss", by, with_base=False)
        reached = losses[at <= common]
        compared.append(ComparedRun(figures, float(reached[-1]) if len(reached) else None))
    those = contestants(runs)
    terms = equal_terms(those, lambda each: each.name)
    return Comparison(
        tuple(compared), by, common, terms,
        verdict(those, terms, lambda each: each.name),
        tuple(scored_rows.scored_sets(those)),
    )  # fmt: skip
