"""Final figures of runs as JSON values, with the verdict and whether they may be compared."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lab.compare import scored_rows
from lab.compare.contestants import contestants
from lab.compare.curves import run_curve
from lab.compare.equal_terms import equal_terms
from lab.compare.run_figures import run_figures
from lab.compare.verdict import verdict
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs.metric_series import series_of

AXES = {"step": "step", "tokens": "tokens", "seconds": "seconds", "flops": "flops"}
UNITS = {"step": "steps", "tokens": "tokens", "seconds": "s", "flops": "FLOPs"}


def row(run: RunDir) -> dict[str, Any]:
    """The figures of one run, from what its worker wrote; None where it wrote nothing."""
    figures = run_figures(run)
    train = series_of(run).train.get("train/loss")
    return {
        "id": run.id,
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
        "train_loss": {
            "first": float(train[0]) if len(train) and math.isfinite(train[0]) else None,
            "last": figures.train_loss,
        },
        "eval_loss": {"base": figures.base_loss, "final": figures.loss},
        "artifact_bytes": figures.artifact_bytes,
        "data_hash": figures.data_hash or None,
        "held_out_hash": figures.held_out_hash or None,
    }


def compare(runs: list[RunDir], by: str = "step") -> dict[str, Any]:
    """{"runs": rows, "by": axis, "at": the largest budget that all reached, "unequal": [...],
    "remarks": [...], "verdict": {...}, "scores": [...]}.

    Each row gets `at`: its evaluation loss at that common budget, so that a run that trained
    longer is not praised for it. In the verdict, runs that differ in their seed alone are one.
    """
    if by not in AXES:
        raise LabError(f"Cannot compare by '{by}'.", f"Choose one of: {', '.join(AXES)}.")
    rows = [row(run) for run in runs]
    key = "steps" if by == "step" else by
    common = min((figures[key] or 0 for figures in rows), default=0)
    for figures, run in zip(rows, runs, strict=True):
        at, losses = run_curve(run_figures(run), "eval/loss", AXES[by], with_base=False)
        reached = losses[at <= common]
        figures["at"] = {
            "value": common,
            "eval_loss": float(reached[-1]) if len(reached) else None,
        }
    those = contestants(runs)
    terms = equal_terms(those, lambda each: each.name)
    return {
        "runs": rows,
        "by": by,
        "at": common,
        "unequal": list(terms.unequal),
        "remarks": list(terms.remarks),
        "verdict": dataclasses.asdict(verdict(those, terms, lambda each: each.name)),
        "scores": scored_rows.as_json(those),
    }
