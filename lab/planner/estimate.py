"""Estimate the memory of a spec that need not be possible here: no weights, no data, any GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lab import machine, methods, paths
from lab.errors import Problem
from lab.files import read_object
from lab.memory import estimate as memory
from lab.memory import hardware, partly
from lab.memory import plan as planning
from lab.models import catalog as models
from lab.models import configs, weights
from lab.planner.check import check_fit, resolve
from lab.spec import RunSpec

CERTAINLY_OVER = 1.2  # times the memory by the closed form: need not be traced to be ruled out


def estimate(
    value: Any, device: dict[str, Any] | None = None, how: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The estimate as JSON, or {"problems"}.

    `device`: {"kind": "cuda" or "cpu", "memory_bytes", "gpu": a name of the table}, each optional;
    without a kind it is this machine, or a GPU of no particular size for a model that cannot run
    here. `how`: {"shadow": false} for the closed form alone, {"whole": true} to trace every layer.
    """
    problems: list[Problem] = []
    spec = RunSpec.parse(value, problems)
    if problems:
        return _refused(problems)
    target = target_of(spec, device or {})
    config = weights.load_config(models.resolve_structure(spec.model))
    ready = resolve(spec, target.has_bf16 if target.on_gpu else None)
    method = methods.get(ready.method["name"])
    packed = spec.data.packing == "on"  # auto packs what is short; full rows have nothing to pack
    check_fit(replace(ready, data=spec.data), _empty(config), None, problems, set(), target.on_gpu)
    if problems:
        return _refused(problems)
    try:
        found = _found(
            config,
            ready,
            method,
            target,
            packed,
            dict(how or {}),
            is_open=(
                spec.train.activation_checkpointing == "auto"
                and bool(method.can_checkpoint_activations)
            ),
        )
    except ValueError as error:  # a library refuses the combination in its own words
        return _refused([Problem("method", f"{method.title} cannot be applied: {error}")])
    answer: dict[str, Any] = found.to_json()
    answer["context_bytes"] = target.context_bytes if target.on_gpu else None
    answer["device_bytes"] = target.memory_bytes
    return answer


def _found(
    config: Any,
    spec: RunSpec,
    method: Any,
    target: Target,
    packed: bool,
    options: dict[str, Any],
    *,
    is_open: bool,
) -> Any:
    """The prediction; where checkpointing is open, with it if the run does not fit without."""
    how = {
        "on_gpu": target.on_gpu,
        "memory_bytes": target.memory_bytes,
        "packed": packed,
        **options,
    }
    if is_open and target.memory_bytes is not None:
        closed = memory.cached(config, spec, method, **{**how, "shadow": False})
        if closed.peak_bytes <= CERTAINLY_OVER * target.memory_bytes:
            found = memory.cached(config, spec, method, **how)
            if found.fits:
                return found
        spec = replace(spec, train=replace(spec.train, activation_checkpointing="on"))
        return partly.with_checkpointing(config, spec, method, **how)[1]
    return memory.cached(config, spec, method, **how)


_empties: dict[str, Any] = {}


def _empty(config: Any) -> Any:
    """The base on the meta device, kept for the next question: checks only look at it."""
    name = config.to_json_string(use_diff=False)
    if name not in _empties:
        if len(_empties) >= 32:
            _empties.clear()
        _empties[name] = weights.empty_model(config)
    return _empties[name]


def limits(value: Any, device: dict[str, Any]) -> dict[str, Any]:
    """What still fits into `device` by the closed form, one thing changed at a time:
    {"longest_row", "largest_batch", "largest_model"}; 0 or "" where not even the least does."""
    problems: list[Problem] = []
    spec = RunSpec.parse(value, problems)
    if problems:
        return _refused(problems)
    target = target_of(spec, device)
    ready = resolve(spec, target.has_bf16 if target.on_gpu else None)
    method = methods.get(ready.method["name"])

    is_open = spec.train.activation_checkpointing == "auto" and method.can_checkpoint_activations

    def fits(one: RunSpec, config: Any) -> bool:
        for way in ("off", "on") if is_open else (one.train.activation_checkpointing,):
            tried = replace(one, train=replace(one.train, activation_checkpointing=way))
            found = memory.predict(
                config,
                tried,
                method,
                on_gpu=target.on_gpu,
                memory_bytes=target.memory_bytes,
                shadow=False,
            )
            if found.fits:
                return True
        return False

    config = weights.load_config(models.resolve_structure(spec.model))
    longest = getattr(config, "max_position_embeddings", None) or 1 << 20
    found: dict[str, Any] = {
        "longest_row": _highest(
            lambda count: fits(replace(ready, data=replace(ready.data, max_length=count)), config),
            longest,
        ),
        "largest_batch": _highest(
            lambda count: fits(
                replace(ready, train=replace(ready.train, batch_size=count)), config
            ),
            4096,
        ),
        "largest_model": "",
    }
    everything = configs.shipped()

    def takes(count: int) -> bool:
        """Whether the shipped config of that place, counted from the smallest, fits."""
        other = weights.load_config(models.resolve_structure(everything[count - 1].id))
        reach = getattr(other, "max_position_embeddings", None) or longest
        rows = replace(ready, data=replace(ready.data, max_length=min(reach, length)))
        try:
            return fits(rows, other)
        except ValueError:
            return False  # the method does not take this architecture

    length = ready.data.max_length
    place = _highest(takes, len(everything))
    found["largest_model"] = everything[place - 1].name if place else ""
    return found


def _highest(fits: Callable[[int], bool], most: int) -> int:
    """The largest count up to `most` that fits; 0 if one does not."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def plan(value: Any, device: dict[str, Any] | None = None) -> dict[str, Any]:
    """{"choices": the best first, "reserve", "reached", "energy_wh_per_million_tokens"}, or
    {"problems"}. `device` as in `estimate`; it must have a size."""
    problems: list[Problem] = []
    spec = RunSpec.parse(value, problems)
    if problems:
        return _refused(problems)
    target = target_of(spec, device or {})
    if target.memory_bytes is None:
        return _refused([Problem("hardware", "the device has no size. Name a GPU or its GB.")])
    config = weights.load_config(models.resolve_structure(spec.model))
    ready = resolve(spec, target.has_bf16 if target.on_gpu else None)
    method = methods.get(ready.method["name"])
    check_fit(replace(ready, data=spec.data), _empty(config), None, problems, set(), target.on_gpu)
    if problems:
        return _refused(problems)
    share = planning.reached(_finished_here(), target.flops)
    found = planning.choose(
        config,
        ready,
        method,
        planning.Device(target.memory_bytes, target.flops, target.on_gpu, share, target.watts),
    )
    best = found[0]
    energy = None
    if target.watts and best.tokens_per_s:
        energy = round(target.watts * 1e6 / best.tokens_per_s / 3600, 2)
    return {
        "choices": [choice.to_json() for choice in found],
        "reserve": planning.RESERVE,
        "reached": share,
        "energy_wh_per_million_tokens": energy,
        "device_bytes": target.memory_bytes,
    }


def _finished_here() -> list[dict[str, Any]]:
    """Summaries of the finished runs of this machine."""
    found = []
    for run in paths.all_runs()[:200]:
        result = read_object(run.result) or {}
        if result.get("state") == "done" and isinstance(result.get("summary"), dict):
            found.append(result["summary"])
    return found


@dataclasses.dataclass(frozen=True)
class Target:
    """The device that an estimate is for."""

    on_gpu: bool
    memory_bytes: int | None
    has_bf16: bool = True
    context_bytes: int | None = None
    flops: float = 300e12
    watts: float | None = None


def target_of(spec: RunSpec, device: dict[str, Any]) -> Target:
    name = device.get("gpu")
    if name:
        gpu = hardware.get(name)
        size = device.get("memory_bytes") or gpu.usable_bytes
        return Target(True, size, gpu.has_bf16, gpu.context_bytes, gpu.flops, gpu.watts)
    size, kind = device.get("memory_bytes"), device.get("kind")
    if kind == "cuda" or (kind is None and size is not None):
        return Target(True, size)
    if kind == "cpu":
        return _this_processor(size)
    gpus = machine.gpus()
    if gpus:
        known = hardware.known(gpus[0]["name"])
        return Target(
            True,
            gpus[0]["free_bytes"],
            known.has_bf16 if known else True,
            known.context_bytes if known else None,
            known.flops if known else 300e12,
            known.watts if known else None,
        )
    if spec.train.precision in ("mixed", "bfloat16") or not models.has_weights(spec.model):
        return Target(True, None)  # it cannot be meant for this processor
    return _this_processor(size)


def _this_processor(size: int | None) -> Target:
    import psutil

    speed = machine.peak_flops("", on_gpu=False) or 5e10
    return Target(False, size or int(psutil.virtual_memory().available), False, None, speed)


def _refused(problems: list[Problem]) -> dict[str, Any]:
    return {"problems": [problem.to_json() for problem in problems]}
