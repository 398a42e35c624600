"""Final figures of runs, and whether they may be compared."""

from __future__ import annotations

from typing import Any

from lab.atomic_files import number, part, read_object, size_of
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import index, record_reader
from lab.runs.status import status

AXES = {"step": "step", "tokens": "tokens", "seconds": "seconds", "flops": "flops"}
UNITS = {"step": "steps", "tokens": "tokens", "seconds": "s", "flops": "FLOPs"}


def row(run: RunDir) -> dict[str, Any]:
    """The figures of one run, from what its worker wrote; None where it wrote nothing."""
    spec = read_object(run.spec) or {}
    train = record_reader.metrics(run, "train")
    evals = record_reader.metrics(run, "eval")
    model = record_reader.last_event(run, "model")
    data = record_reader.last_event(run, "data")
    last = train[-1] if train else {}
    tuned = [record for record in evals if record.get("of") != "base"]
    seconds, tokens = last.get("seconds", 0.0), last.get("tokens", 0)
    return {
        "id": run.id,
        "name": index.entry(run).name,
        "model": str(spec.get("model", "")),
        "method": str(part(spec, "method").get("name", "")),
        "seed": number(part(spec, "train").get("seed")),
        "state": status(run).state,
        # a method may make more trainable on the way
        "trainable": number((record_reader.last_event(run, "unfrozen") or model).get("trainable")),
        "parameters": number(model.get("parameters")),
        "steps": last.get("step", 0),
        "tokens": tokens,
        "loss_tokens": last.get("loss_tokens", 0),
        "seconds": seconds,
        "flops": last.get("flops", 0.0),
        "tokens_per_s": number(tokens / seconds) if seconds else None,
        "peak_bytes": max((record.get("memory/peak_bytes", 0) for record in train), default=None),
        "train_loss": {
            "first": train[0].get("train/loss") if train else None,
            "last": last.get("train/loss"),
        },
        "eval_loss": {
            "base": record_reader.base_loss(run),
            "final": tuned[-1].get("eval/loss") if tuned else None,
        },
        "artifact_bytes": size_of(run.artifact) if run.artifact.is_dir() else None,
        "data_hash": data.get("train_hash"),
        "held_out_hash": data.get("held_out_hash"),
    }


def compare(runs: list[RunDir], by: str = "step") -> dict[str, Any]:
    """{"runs": rows, "by": axis, "at": the largest budget that all reached, "unequal": [...]}.

    Each row gets `at`: its evaluation loss at that common budget, so that a run that trained
    longer is not praised for it.
    """
    if by not in AXES:
        raise LabError(f"Cannot compare by '{by}'.", f"Choose one of: {', '.join(AXES)}.")
    rows = [row(run) for run in runs]
    key = "steps" if by == "step" else by
    common = min((figures[key] or 0 for figures in rows), default=0)
    for figures, run in zip(rows, runs, strict=True):
        reached = [
            record
            for record in record_reader.metrics(run, "eval")
            if record.get(AXES[by], 0) <= common and record.get("of") != "base"
        ]
        figures["at"] = {
            "value": common,
            "eval_loss": reached[-1].get("eval/loss") if reached else None,
        }
    return {"runs": rows, "by": by, "at": common, "unequal": unequal(rows)}


def unequal(rows: list[dict[str, Any]]) -> list[str]:
    """What makes these runs an unfair comparison, in words; empty if nothing does."""
    checks = {
        "model": "They start from different models",
        "data_hash": "They trained on different data",
        "held_out_hash": "They are measured on different held-out rows",
        "tokens": "They trained on different numbers of tokens",
        "state": "They ended in different states",
    }
    differences = []
    for key, text in checks.items():
        values = [row[key] for row in rows]
        if len({str(value) for value in values}) > 1:
            shown = ", ".join(
                f"{value:,}" if number(value) is not None else str(value) for value in values
            )
            differences.append(f"{text}: {shown}.")
    return differences
