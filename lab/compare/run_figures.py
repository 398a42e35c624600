"""The figures of one run, from what its worker and measurements wrote; nothing is computed with a
model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.atomic_files import file_identity, finite_number, part, read_object, size_of
from lab.paths import RunDir
from lab.rank import measure
from lab.rank.measure import RankReport
from lab.recent import Recent
from lab.runs import index, record_reader
from lab.runs.energy import energy_used
from lab.runs.held_out_losses import HeldOutLosses, held_out_losses
from lab.runs.index import RunSummary
from lab.runs.metric_columns import Columns
from lab.runs.metric_series import series_of
from lab.spec import RunSpec


@dataclass(frozen=True, eq=False)
class RunFigures:
    """Losses in nats a token, sizes in bytes, times in seconds, energy in watt-hours; None where
    nothing was measured. Seconds, tokens and FLOPs are those of training alone."""

    run: RunDir
    entry: RunSummary
    spec: dict[str, Any]
    base: str  # of its weights: what they hash to, else the model's id
    device: str
    data_hash: str
    held_out_hash: str
    seed: int
    base_loss: float | None
    loss: float | None
    early_loss: float | None  # at the first evaluation, where there are several
    early_tokens: float | None  # trained on before it
    train_loss: float | None
    steps: int
    tokens: int
    loss_tokens: int
    seconds: float
    flops: float
    tokens_per_s: float | None
    peak_bytes: float | None
    energy_wh: float | None
    trainable: float | None
    parameters: float | None
    artifact_bytes: float | None
    forgetting: float | None  # rise of the loss on the base's own answers
    kl: float | None
    forgetting_half: float | None  # half of its 95 % interval, by drawing the prompts again
    kl_half: float | None
    ended: float | None  # share of general answers that end by themselves
    answer_tokens: float | None  # their mean length
    base_ended: float | None
    base_answer_tokens: float | None
    effective_rank: float | None  # medians over the updates at the last evaluation, of LoRA
    stable_rank: float | None
    needed_rank: float | None  # holds 95 % of the energy of all updates, where that was measured
    losses: HeldOutLosses | None

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def is_rate_default(self) -> bool:
        """Whether nobody chose the learning rate."""
        requested = part(RunSpec.requested(self.spec) or {}, "train")
        return bool(requested.get("learning_rate", "auto") == "auto")


_figures: Recent[tuple[Any, ...], RunFigures] = Recent(64)


def run_figures(run: RunDir) -> RunFigures:
    """Read again only when a file of the run has changed."""
    entry = index.entry(run)
    ranks = measure.file_of(run)
    files = (
        run.metrics, run.events, run.held_out, run.result, run.labels, run.artifact, ranks,
        run.spec, run.environment,
    )  # fmt: skip
    key = (str(run.path), *map(file_identity, files), entry.status.state)
    return _figures.get(key) or _figures.put(key, _read(run, entry))


def _read(run: RunDir, entry: RunSummary) -> RunFigures:
    series = series_of(run)
    spec = read_object(run.spec) or {}
    events = record_reader.events(run)

    def last_event(*kinds: str) -> dict[str, Any]:
        matches = [event for event in events if event.get("kind") in kinds]
        return matches[-1] if matches else {}

    model, data = last_event("model"), last_event("data")
    with series.lock:
        train, held_out = series.train, series.evaluation
        seconds, tokens = train.last("seconds") or 0.0, int(train.last("tokens") or 0)
        base = held_out.base or {}
        return RunFigures(
            run=run,
            entry=entry,
            spec=spec,
            base=str(last_event("base").get("weights") or spec.get("model", "")),
            device=str((read_object(run.environment) or {}).get("device", "")),
            data_hash=str(data.get("train_hash") or ""),
            held_out_hash=str(data.get("held_out_hash") or ""),
            seed=int(finite_number(part(spec, "train").get("seed")) or 0),
            base_loss=finite_number(base.get("eval/loss")),
            loss=finite_number(held_out.last("eval/loss")),
            early_loss=_first_of_several(held_out, "eval/loss"),
            early_tokens=_first_of_several(held_out, "tokens"),
            train_loss=finite_number(train.last("train/loss")),
            steps=int(train.last("step") or 0),
            tokens=tokens,
            loss_tokens=int(train.last("loss_tokens") or 0),
            seconds=seconds,
            flops=train.last("flops") or 0.0,
            tokens_per_s=tokens / seconds if seconds else None,
            peak_bytes=_highest(train, "memory/peak_bytes"),
            energy_wh=energy_wh(series.device),
            # a method may make more trainable on the way
            trainable=finite_number(last_event("model", "unfrozen").get("trainable")),
            parameters=finite_number(model.get("parameters")),
            artifact_bytes=size_of(run.artifact) if run.artifact.is_dir() else None,
            forgetting=finite_number(series.probe.last("probe/rise")),
            kl=finite_number(series.probe.last("probe/kl")),
            forgetting_half=finite_number(series.probe.last("probe/rise_half")),
            kl_half=finite_number(series.probe.last("probe/kl_half")),
            ended=finite_number(series.probe.last("probe/ended")),
            answer_tokens=finite_number(series.probe.last("probe/answer_tokens")),
            base_ended=finite_number(series.probe.last("probe/base_ended")),
            base_answer_tokens=finite_number(series.probe.last("probe/base_answer_tokens")),
            effective_rank=finite_number(held_out.last("rank/effective")),
            stable_rank=finite_number(held_out.last("rank/stable")),
            needed_rank=_needed_rank(run),
            losses=held_out_losses(run),
        )


def _needed_rank(run: RunDir) -> float | None:
    report = measure.look(run)
    return float(report.needed) if isinstance(report, RankReport) else None


def _highest(columns: Columns, key: str) -> float | None:
    values = columns.get(key)
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else None


def _first_of_several(columns: Columns, key: str) -> float | None:
    values = columns.get(key)
    values = values[np.isfinite(values)]
    return float(values[0]) if len(values) > 1 else None


def energy_wh(device: Columns) -> float | None:
    """What the card has used while the run trained, None where nobody measured its power."""
    _, energy = energy_curve(device)
    return float(energy[-1]) if len(energy) and energy[-1] > 0 else None


def energy_curve(device: Columns) -> tuple[np.ndarray, np.ndarray]:
    """(seconds of training, Wh used by then) at each sample of the device; empty without power.

    Time in which the run did not train, such as evaluations, adds nothing."""
    return energy_used(device.get("seconds"), device.get("nvml/power_w"))
