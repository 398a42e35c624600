"""Estimate the memory of a spec that need not be possible here: no weights, no data, any GPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lab import host, methods
from lab.data.dataset_stats import dataset_stats
from lab.errors import LabError, Problem, SpecError
from lab.forecast import compile_choice, runtime_estimate, selective_checkpointing
from lab.forecast import estimator as memory
from lab.forecast import settings_search as planning
from lab.forecast.resolve import fit_method, resolve
from lab.forecast.runtime_estimate import TargetDevice
from lab.forecast.target_device import target_of, with_reached
from lab.forecasts import DatasetStats, FitLimits, Forecast, SettingsSearch, Speed
from lab.hub.progress import DownloadForecast
from lab.models import catalog as models
from lab.models import hub, shipped_configs, weights
from lab.models.empty_model import meta_model
from lab.preflight.validate import check_fit, not_applicable
from lab.spec import RunSpec
from lab.stages import stage

CERTAINLY_OVER = 1.2  # times the memory by the outline: need not be traced to be ruled out


def estimate(
    value: Any, device: dict[str, Any] | None = None, how: dict[str, Any] | None = None
) -> Forecast:
    """The forecast. Raises SpecError with all problems.

    `device`: {"kind": "cuda" or "cpu", "memory_bytes", "gpu": a name of the table}, each optional;
    without a kind it is this machine, or a GPU of no particular size for a model that cannot run
    here. `how`: {"shadow": false} for the outline alone, {"whole": true} to trace every layer.
    """
    problems: list[Problem] = []
    spec = RunSpec.parse(value, problems)
    _refuse(problems)
    target = target_of(spec, device or {})
    config = _config(spec)
    ready, fitted = _resolved(spec, target, config)
    method = methods.get(ready.method["name"])
    options = dict(how or {})
    is_timed = options.pop("time", False)
    packed = _is_packed(spec, ready, target, device)
    check_fit(replace(ready, data=spec.data), _empty(config), None, problems, set(), target.on_gpu)
    _refuse(problems)
    try:
        ready, forecast = _found(
            config,
            ready,
            method,
            target,
            packed,
            options,
            is_open=(
                spec.train.activation_checkpointing == "auto"
                and bool(method.can_checkpoint_activations)
            ),
        )
    except ValueError as error:  # a library refuses the combination in its own words
        raise SpecError([not_applicable(method, ready.method_config, error)]) from None
    sized = memory.measure(config, ready, method)
    costs, where = sized.costs[memory.loss_kind(config, ready)], with_reached(target)
    launches = forecast.memory.launches
    each = runtime_estimate.seconds_a_token(
        ready, costs, sized.sizes, where, bits=sized.bits, launches=launches
    )
    runtime = None
    if is_timed:
        stats = _stats_if_at_hand(ready)
        runtime = runtime_estimate.pace(
            ready, costs, sized.sizes, where, stats, sized.bits, launches
        )
    return replace(
        forecast,
        speed=Speed(
            round(1 / each, 1), target.watts and round(target.watts * each * 1e6 / 3600, 3)
        ),
        runtime=runtime,
        notes=(*fitted, *forecast.notes),
        context_bytes=target.context_bytes if target.on_gpu else None,
        device_bytes=target.memory_bytes,
        download=_download(spec),
    )


def _download(spec: RunSpec) -> DownloadForecast | None:
    """What a run would fetch first; None where nothing can be fetched, or it is not known."""
    try:
        return hub.download_size(models.resolve_config(spec.model))
    except LabError:
        return None  # the forecast stands without it; a check says what is wrong


def _found(
    config: Any,
    spec: RunSpec,
    method: Any,
    target: TargetDevice,
    packed: bool,
    options: dict[str, Any],
    *,
    is_open: bool,
) -> tuple[RunSpec, Forecast]:
    """(the spec, its prediction); where checkpointing is open, with it if the run does not fit
    without."""
    how = {
        "on_gpu": target.on_gpu,
        "memory_bytes": target.memory_bytes,
        "packed": packed,
        **options,
    }
    if is_open and target.memory_bytes is not None:
        outline = memory.cached(config, spec, method, **{**how, "shadow": False})
        if outline.memory.peak_bytes <= CERTAINLY_OVER * target.memory_bytes:
            forecast = memory.cached(config, spec, method, **how)
            if forecast.memory.fits is not False:
                return spec, forecast
        spec = replace(spec, train=replace(spec.train, activation_checkpointing="on"))
        return selective_checkpointing.with_checkpointing(config, spec, method, **how)
    return spec, memory.cached(config, spec, method, **how)


def _resolved(spec: RunSpec, target: TargetDevice, config: Any) -> tuple[RunSpec, list[str]]:
    """(the spec as it would run on the target, what is told of the method's defaults)."""
    ready = resolve(spec, target.has_bf16)
    return fit_method(ready, _empty(config))


def _is_packed(
    spec: RunSpec, ready: RunSpec, target: TargetDevice, device: dict[str, Any] | None
) -> bool:
    """A run here is predicted as it would start. Elsewhere only what is asked for counts: auto
    packs what is short, and full rows have nothing to pack."""
    is_here = not device and target.on_gpu == bool(host.gpus())
    has_data = is_here and models.has_weights(spec.model)
    return (ready if has_data else spec).data.packing == "on"


def _stats_if_at_hand(spec: RunSpec) -> DatasetStats:
    """What is known of the data; nothing where it, or the model's tokenizer, is not at hand."""
    try:
        source = models.resolve(spec.model)
        if not hub.has_tokenizer_here(source):
            return DatasetStats()  # nothing is fetched while somebody types
        with stage("tokenizer"):
            tokenizer = weights.load_tokenizer(source)
        return dataset_stats(spec, tokenizer)
    except LabError:
        return DatasetStats()


def _config(spec: RunSpec) -> Any:
    with stage("model"):
        return weights.load_config(models.resolve_config(spec.model))


_empties: dict[str, Any] = {}


def _empty(config: Any) -> Any:
    """The base on the meta device, kept for the next question: checks only look at it."""
    name = config.to_json_string(use_diff=False)
    if name not in _empties:
        if len(_empties) >= 32:
            _empties.clear()
        with stage("model"):
            _empties[name] = meta_model(config)
    return _empties[name]


def limits(value: Any, device: dict[str, Any]) -> FitLimits:
    """What still fits into `device` by outlines, one thing changed at a time. Raises SpecError."""
    problems: list[Problem] = []
    spec = RunSpec.parse(value, problems)
    _refuse(problems)
    target = target_of(spec, device)
    config, room = _config(spec), float(target.memory_bytes or 0)
    ready, _ = _resolved(spec, target, config)
    method = methods.get(ready.method["name"])
    if spec.train.activation_checkpointing == "auto" and method.can_checkpoint_activations:
        ready = replace(ready, train=replace(ready.train, activation_checkpointing="on"))

    def peak(one: RunSpec, config: Any) -> float:
        """Infinite where nobody can say it."""
        try:
            predicted = memory.predict(
                config,
                one,
                method,
                on_gpu=target.on_gpu,
                memory_bytes=target.memory_bytes,
                shadow=False,
            ).memory
        except memory.StepFails:
            return math.inf
        return predicted.peak_bytes if predicted.how.is_traced else math.inf

    def with_rows(rows: int) -> float:
        return peak(replace(ready, train=replace(ready.train, batch_size=rows)), config)

    def with_length(tokens: int) -> float:
        return peak(replace(ready, data=replace(ready.data, max_length=tokens)), config)

    longest = getattr(config, "max_position_embeddings", None) or 1 << 20
    length, rows = ready.data.max_length, ready.train.batch_size
    everything = shipped_configs.shipped()

    def of_model(count: int) -> float:
        """The peak with the shipped config of that place, counted from the smallest."""
        other = weights.load_config(models.resolve_config(everything[count - 1].id))
        reach = getattr(other, "max_position_embeddings", None) or longest
        try:
            return peak(
                replace(ready, data=replace(ready.data, max_length=min(reach, length))), other
            )
        except ValueError:
            return math.inf  # the method does not take this architecture

    place = _largest_that_fits(of_model, room, len(everything))
    return FitLimits(
        longest_row=_largest_that_fits(with_length, room, longest, length),
        largest_batch=_largest_that_fits(with_rows, room, 4096, rows),
        largest_model=everything[place - 1].name if place else "",
    )


def _largest_that_fits(
    peak: Callable[[int], float], room: float, most: int, near: int | None = None
) -> int:
    """The largest count up to `most` with a peak of at most `room`; 0 if one has more.

    Peaks that grow along a line are found in a few steps from `near`; without it the middle is
    tried each time.
    """
    low, high = 0, most + 1  # low fits, high does not
    peaks: dict[int, float] = {}
    count = most if near else high // 2  # both ends tell where the line meets the room
    for step in itertools.count():
        if high - low <= 1:
            return low
        count = min(max(count, low + 1), high - 1)
        peaks[count] = peak(count)
        if peaks[count] <= room:
            low = count
        else:
            high = count
        ends = [end for end in (low, high) if math.isfinite(peaks.get(end, math.inf))]
        if near and step == 0:
            count = near
        elif near is None or step % 4 == 3:
            count = (low + high) // 2
        elif len(ends) == 2 and peaks[high] > peaks[low]:
            share = (room - peaks[low]) / (peaks[high] - peaks[low])
            count = low + int(share * (high - low))
        else:
            count = count * 2 if low == count else count // 2
    raise AssertionError("the bounds meet")


def plan(value: Any, device: dict[str, Any] | None = None) -> SettingsSearch:
    """The settings that fit, the fastest first. `device` as in `estimate`; it must have a size.
    Raises SpecError with all problems."""
    problems: list[Problem] = []
    spec = RunSpec.parse(value, problems)
    _refuse(problems)
    target = target_of(spec, device or {})
    if target.memory_bytes is None:
        raise SpecError([Problem("hardware", "the device has no size. Name a GPU or its GB.")])
    config = _config(spec)
    ready, _ = _resolved(spec, target, config)
    method = methods.get(ready.method["name"])
    check_fit(replace(ready, data=spec.data), _empty(config), None, problems, set(), target.on_gpu)
    _refuse(problems)
    where = with_reached(target)
    try:
        sized = memory.measure(config, ready, method)
        costs = sized.costs[memory.loss_kind(config, ready)]
        compiles, why = compile_choice.choose(
            spec, ready, method, costs, sized.sizes, where, _stats_if_at_hand(ready), sized.bits
        )
        packed = _is_packed(spec, ready, target, device)
        candidates = planning.choose(config, ready, method, where, compiles, packed=packed)
        if not candidates:
            why = memory.predict(
                config, ready, method, on_gpu=target.on_gpu, memory_bytes=None, shadow=False
            ).memory.trace_error
            raise SpecError([Problem("model", f"the step cannot be traced ({why}).")])
    except ValueError as error:  # a library refuses the combination in its own words
        raise SpecError([not_applicable(method, ready.method_config, error)]) from None
    energy = None
    if target.watts and candidates[0].tokens_per_s:
        energy = round(target.watts * 1e6 / candidates[0].tokens_per_s / 3600, 2)
    return SettingsSearch(
        candidates=tuple(candidates),
        reserve=planning.RESERVE,
        reached=where.reached,
        is_measured=where.is_measured,
        compile=why,
        energy_wh_per_million_tokens=energy,
        device_bytes=target.memory_bytes,
    )


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise SpecError(problems)
