"""Layer extension: trace two and four layers, and extend each part of the step by itself.

Within one part (a layer's forward pass, the loss, a layer's backward pass) all that a further
layer adds is there from beginning to end, so that the part's peak is a straight line in the
number of layers. Only between parts does the peak move, so the largest is taken last.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import asdict, replace
from typing import Any

from lab.memory.shadow.ledger import Peak
from lab.memory.shadow.structure import build, signatures, with_layers
from lab.memory.shadow.trace import Batch, Trace, decoder_layers, trace
from lab.methods import Method
from lab.spec import RunSpec

FEW, MORE = 2, 4
KEPT = 16  # triples of traces
SHORT = 12  # layers: a model up to here is traced as a whole


def step(
    config: Any,
    found: tuple[Any, ...],
    method: Method,
    spec: RunSpec,
    batch: Batch,
    loss: str,
    *,
    on_gpu: bool,
    whole: bool = False,
) -> tuple[Trace, str]:
    """(the trace of a step of a model of `config`, "full trace" or "layer extension").

    `found` are the signatures of its layers with the method in place; extension is used where
    they are alike.
    """
    count = getattr(config, "num_hidden_layers", 0)
    some = (spec.train.activation_checkpointing == "on" and spec.train.checkpointed_layers) or 0
    if whole or count <= SHORT or not _are_alike(config, found, batch):
        pass
    elif 0 < some < count:
        if FEW <= some <= count - FEW:
            made = _mixed(config, found, method, spec, batch, loss, on_gpu)
            if made is not None:
                return extend_mixed(*made, some, count), "layer extension"
    else:
        parts = []
        for few in (FEW, MORE):
            short = with_layers(config, few)
            small, quantised, _ = build(short, spec, method)
            if signatures(decoder_layers(small)) != list(found[:few]):
                break
            parts.append(
                trace(
                    small,
                    method,
                    spec,
                    batch,
                    loss,
                    quantised,
                    on_gpu=on_gpu,
                    evaluates=few == FEW,
                )
            )
        if len(parts) == 2:
            return extend(parts[0], parts[1], count), "layer extension"
    model, quantised, _ = build(config, spec, method)
    return trace(model, method, spec, batch, loss, quantised, on_gpu=on_gpu), "full trace"


_traced: OrderedDict[str, tuple[Trace, Trace, Trace]] = OrderedDict()  # the same for all splits


def _mixed(
    config: Any,
    found: tuple[Any, ...],
    method: Method,
    spec: RunSpec,
    batch: Batch,
    loss: str,
    on_gpu: bool,
) -> tuple[Trace, Trace, Trace] | None:
    """Traces of 2 layers that recompute and 2 that keep, of 4 and 2, and of 2 and 4; None where
    the short models are not made of the same layers."""
    train = replace(spec.train, checkpointed_layers=FEW)
    asked = [config.to_dict(), spec.method, asdict(train), asdict(batch), loss, on_gpu]
    name = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    if name not in _traced:
        parts = []
        for first, rest in ((FEW, FEW), (MORE, FEW), (FEW, MORE)):
            some = replace(spec, train=replace(train, checkpointed_layers=first))
            small, quantised, _ = build(with_layers(config, first + rest), some, method)
            if signatures(decoder_layers(small)) != list(found[: first + rest]):
                return None
            is_least = first == rest
            parts.append(
                trace(
                    small, method, some, batch, loss, quantised, on_gpu=on_gpu, evaluates=is_least
                )
            )
        _traced[name] = (parts[0], parts[1], parts[2])
        if len(_traced) > KEPT:
            _traced.popitem(last=False)
    return _traced[name]


def _are_alike(config: Any, found: tuple[Any, ...], batch: Batch) -> bool:
    if len(found) != config.num_hidden_layers or len(set(found)) != 1:
        return False
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if not isinstance(kinds, (list, tuple)) or len(set(kinds)) == 1:
        return True
    # layers with and without a window differ only where the rows are longer than the window
    is_short = isinstance(window, int) and batch.length < window and not batch.packed
    return is_short and set(kinds) <= {"sliding_attention", "full_attention"}


def extend(few: Trace, more: Trace, count: int) -> Trace:
    """The trace of `count` layers from those of two and four."""
    made: dict[str, Peak] = {}
    for name, peak in more.peaks.items():
        phase, _, place = name.partition(".layer.")
        if not place:
            made[name] = _line(few.peaks.get(name, peak), peak, peak, MORE, count)
            continue
        # the layers next to both ends stand for all between: what lies between is linear
        index = int(place)
        end = 0 if index < FEW else 1
        slope = few.peaks[f"{phase}.layer.{end}"], more.peaks[f"{phase}.layer.{end * (MORE - 1)}"]
        place = str(index if index < FEW else count - MORE + index)
        found = _line(*slope, peak, MORE, count)
        found.module = found.module.replace(f".{index}", f".{place}", 1)
        made[f"{phase}.layer.{place}"] = found
    made["evaluate"] = _with_more_weights(few, more, count)
    reserved = None
    if few.reserved is not None and more.reserved is not None:
        reserved = _to(few.reserved, more.reserved, more.reserved, MORE, count)
    return Trace(made, reserved)


def extend_mixed(least: Trace, more: Trace, rest: Trace, first: int, count: int) -> Trace:
    """The trace of `count` layers of which the `first` recompute, from those of 2 and 2, 4 and 2,
    and 2 and 4 layers: a straight line in the number of either kind, as in `extend`."""
    made: dict[str, Peak] = {}
    for name, peak in least.peaks.items():
        phase, _, place = name.partition(".layer.")
        names, title = (name, name), name
        if place:  # the ends of both kinds stand for all of their kind
            index = int(place)
            names = (
                f"{phase}.layer.{(0, 3, 4, 5)[index]}",
                f"{phase}.layer.{(0, 1, 2, 5)[index]}",
            )
            title = f"{phase}.layer.{(0, first - 1, first, count - 1)[index]}"
        if names[0] not in more.peaks or names[1] not in rest.peaks:
            continue
        found = _line(peak, more.peaks[names[0]], peak, FEW, first)
        found = _line(peak, rest.peaks[names[1]], found, FEW, count - first)
        if place:
            found.module = found.module.replace(f".{place}", f".{title.rpartition('.')[2]}", 1)
        made[title] = found
    made["evaluate"] = _with_more_weights(least, more, count, at=2 * FEW)
    reserved = None
    if least.reserved is not None and more.reserved is not None and rest.reserved is not None:
        reserved = _to(least.reserved, more.reserved, least.reserved, FEW, first)
        reserved = _to(least.reserved, rest.reserved, reserved, FEW, count - first)
    return Trace(made, reserved)


def _with_more_weights(few: Trace, more: Trace, count: int, at: int = FEW) -> Peak:
    """Evaluation keeps nothing of a layer but its weights and moments."""
    start = few.peaks["evaluate"]
    low, high = few.peaks["optimizer"].kinds, more.peaks["optimizer"].kinds
    kinds = dict(start.kinds)
    for kind in ("weights", "optimizer"):
        kinds[kind] = _to(low.get(kind, 0), high.get(kind, 0), kinds.get(kind, 0), at, count)
    total = start.total + sum(kinds.values()) - sum(start.kinds.values())
    slack = start.counted - start.total if start.counted else 0
    return Peak(total, kinds, start.operation, start.module, total + slack)


def _line(few: Peak, more: Peak, start: Peak, at: int, count: int) -> Peak:
    """`start` (measured with `at` layers) moved along the line through `few` and `more`."""
    kinds = {
        kind: _to(few.kinds.get(kind, 0), more.kinds.get(kind, 0), size, at, count)
        for kind, size in start.kinds.items()
    }
    low, high, own = (
        peak.counted - peak.total if peak.counted else 0 for peak in (few, more, start)
    )
    total = _to(few.total, more.total, start.total, at, count)
    counted = total + max(0, _to(low, high, own, at, count)) if start.counted else 0
    return Peak(total, kinds, start.operation, start.module, counted)


def _to(few: int, more: int, start: int, at: int, count: int) -> int:
    return start + (more - few) * (count - at) // (MORE - FEW)
