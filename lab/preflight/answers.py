"""What the preflight process answers: a request is read, and held against device, base and data.

Nothing is needed but a config: models without weights and devices that are not here can be asked
for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lab import host
from lab.data.dataset_stats import dataset_stats
from lab.errors import LabError, Problem, SpecError
from lab.forecast import forecaster, memory_savers, settings_search
from lab.forecast.limits import fit_limits
from lab.forecast.memory_forecast import TraceOptions
from lab.forecast.resolve import Resolution, resolve
from lab.forecast.target_device import TargetDevice, target_of
from lab.forecasts import DatasetStats, FitLimits, Forecast, Saving, SettingsSearch
from lab.models import catalog, hub, weights
from lab.models.base_model import BaseModel, read_config
from lab.preflight import combination
from lab.preflight.validate import check
from lab.spec import RunSpec
from lab.stages import stage


def estimate(
    value: Any, device: dict[str, Any] | None = None, how: dict[str, Any] | None = None
) -> Forecast:
    """The forecast. Raises SpecError with all problems.

    `device`: {"kind": "cuda" or "cpu", "memory_bytes", "gpu": a name of the table}, each optional;
    without a kind it is this machine, or a GPU of no particular size for a model that cannot run
    here. `how`: {"shadow": false} for the outline alone, {"whole": true} to trace every layer,
    {"time": true} to read the data and predict the time.
    """
    question, how = _question(value, device), how or {}
    _refuse_combination(question)
    options = TraceOptions(
        question.target.on_gpu,
        question.is_packed,
        traced=how.get("shadow", True),
        whole=how.get("whole", False),
    )
    stats = _stats_if_at_hand(question.resolution.spec) if how.get("time") else None
    _, forecast = forecaster.forecast(
        question.resolution, question.base.config, question.target, options, stats
    )
    return forecast


def limits(value: Any, device: dict[str, Any]) -> FitLimits:
    """What still fits into `device`, one thing changed at a time. Raises SpecError."""
    question = _question(value, device)
    return fit_limits(question.resolution, question.base.config, question.target)


def plan(value: Any, device: dict[str, Any] | None = None) -> SettingsSearch:
    """The settings that fit, the fastest first. `device` as in `estimate`; it must have a size.
    Raises SpecError with all problems."""
    question = _question(value, device)
    if question.target.memory_bytes is None:
        raise SpecError([Problem("hardware", "the device has no size. Name a GPU or its GB.")])
    _refuse_combination(question)
    return settings_search.search_settings(
        question.resolution,
        question.base.config,
        question.target,
        _stats_if_at_hand(question.resolution.spec),
        packed=question.is_packed,
    )


def fixes(value: dict[str, Any]) -> tuple[int | None, list[Saving]]:
    """(the predicted peak, what makes a resolved spec smaller, the largest saving first); None and
    nothing where the spec has problems. What saves nothing is left out."""
    import torch

    now = check(without_memory_check(value)).run
    if now is None:
        return None, []
    peak = now.forecast.memory.peak_bytes
    spec = now.spec.to_json()
    savings = []
    for saver in memory_savers.candidates(spec, on_gpu=torch.cuda.is_available()):
        changed = check(without_memory_check(saver.apply(spec))).run
        if changed is not None and changed.forecast.memory.peak_bytes < peak:
            less = changed.forecast.memory.peak_bytes
            savings.append(
                Saving(saver.title, saver.changes, saver.keeps_effective_batch, less, peak - less)
            )
    savings.sort(key=lambda saving: -saving.saves_bytes)
    return peak, savings


def without_memory_check(value: dict[str, Any]) -> dict[str, Any]:
    """The spec without the question whether it fits."""
    return value | {"hardware": {**(value.get("hardware") or {}), "ignore_memory": True}}


@dataclass(frozen=True)
class _Question:
    """A spec as it was asked for and as it would run on the target. `is_packed`: whether rows are
    taken to hold several sequences."""

    spec: RunSpec
    resolution: Resolution
    base: BaseModel
    target: TargetDevice
    is_packed: bool


def _question(value: Any, device: dict[str, Any] | None) -> _Question:
    """Raises SpecError with all problems of the spec, LabError where device or config are not
    there."""
    problems: list[Problem] = []
    spec = RunSpec.parse(value, problems)
    if problems:
        raise SpecError(problems)
    target = target_of(spec, device or {})
    base = read_config(spec.model)
    resolution = resolve(spec, target.has_bf16).fitted_to(base.model)
    # A run here is predicted as it would start. Elsewhere only what is asked for counts: auto packs
    # what is short, and full rows have nothing to pack.
    is_here = not device and target.on_gpu == bool(host.gpus())
    starts_here = is_here and catalog.has_weights(spec.model)
    packing = (resolution.spec if starts_here else spec).data.packing
    return _Question(spec, resolution, base, target, packing == "on")


def _refuse_combination(question: _Question) -> None:
    # packing as it was asked for: what "auto" became suits the method anyway
    spec = replace(question.resolution.spec, data=question.spec.data)
    problems = combination.problems(spec, question.base, set(), on_gpu=question.target.on_gpu)
    if problems:
        raise SpecError(problems)


def _stats_if_at_hand(spec: RunSpec) -> DatasetStats:
    """What is known of the data; nothing where it, or the model's tokenizer, is not at hand."""
    try:
        source = catalog.resolve(spec.model)
        if not hub.has_tokenizer_here(source):
            return DatasetStats()  # nothing is fetched while somebody types
        with stage("tokenizer"):
            tokenizer = weights.load_tokenizer(source)
        return dataset_stats(spec, tokenizer)
    except LabError:
        return DatasetStats()
