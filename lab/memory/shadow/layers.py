"""Layer extension: trace two and six or eight layers, and extend each part of the step by itself.

Within one part (a layer's forward pass, the loss, a layer's backward pass) all that a further
layer adds is there from beginning to end, so that the part's peak is a straight line in the
number of layers. Only between parts does the peak move, so the largest is taken last. What the
allocator's blocks hold beyond the tensors grows faster than the tensors' bytes and slower than the
number of layers: the mean of both is taken.
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

FEW, MORE = 2, 8
WIDE, MORE_OF_WIDE = 2048, 6  # blocks weigh less beside the tensors of a wide model
KEPT = 32  # traces
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
    if not whole and count > SHORT and _are_alike(config, found, batch):
        if 0 < some < count:
            off, on = (
                _extended(config, found, method, _all(spec, way), batch, loss, on_gpu)
                for way in ("off", "on")
            )
            if off is not None and on is not None:
                return combine(off, on, some, count), "layer extension"
        else:
            made = _extended(config, found, method, spec, batch, loss, on_gpu)
            if made is not None:
                return made, "layer extension"
    model, quantised, _ = build(config, spec, method)
    return trace(model, method, spec, batch, loss, quantised, on_gpu=on_gpu), "full trace"


def _all(spec: RunSpec, way: str) -> RunSpec:
    train = replace(spec.train, activation_checkpointing=way, checkpointed_layers=None)
    return replace(spec, train=train)


_kept: OrderedDict[str, Trace] = OrderedDict()  # for other numbers of checkpointed layers


def _extended(
    config: Any,
    found: tuple[Any, ...],
    method: Method,
    spec: RunSpec,
    batch: Batch,
    loss: str,
    on_gpu: bool,
) -> Trace | None:
    """The trace extended from two short models; None where their layers are not the same."""
    asked = [config.to_dict(), spec.method, asdict(spec.train), asdict(batch), loss, on_gpu]
    name = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    if name in _kept:
        return _kept[name]
    more = MORE if config.hidden_size < WIDE else MORE_OF_WIDE
    parts = []
    for few in (FEW, more):
        small, quantised, _ = build(with_layers(config, few), spec, method)
        if signatures(decoder_layers(small)) != list(found[:few]):
            return None
        is_least = few == FEW
        parts.append(
            trace(small, method, spec, batch, loss, quantised, on_gpu=on_gpu, evaluates=is_least)
        )
    made = extend(parts[0], parts[1], more, config.num_hidden_layers)
    _kept[name] = made
    if len(_kept) > KEPT:
        _kept.popitem(last=False)
    return made


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


def extend(few: Trace, more: Trace, size: int, count: int) -> Trace:
    """The trace of `count` layers from those of FEW and of `size`."""
    made: dict[str, Peak] = {}
    for name, peak in more.peaks.items():
        phase, _, place = name.partition(".layer.")
        if not place:
            found = _line(few.peaks.get(name, peak), peak, peak, count - size, size - FEW)
            found.counted = _counted(peak, found.total, count / size)
            made[name] = found
            continue
        # the layers next to both ends stand for all between: what lies between is linear
        index = int(place)
        end = 0 if index < FEW else 1
        slope = few.peaks[f"{phase}.layer.{end}"], more.peaks[f"{phase}.layer.{end * (size - 1)}"]
        place = str(index if index < FEW else count - size + index)
        found = _line(*slope, peak, count - size, size - FEW)
        found.counted = _counted(peak, found.total, count / size)
        found.module = found.module.replace(f".{index}", f".{place}", 1)
        made[f"{phase}.layer.{place}"] = found
    made["evaluate"] = _with_more_weights(few, more, count - FEW, size - FEW)
    reserved = None
    if few.reserved is not None and more.reserved is not None:
        reserved = _to(few.reserved, more.reserved, more.reserved, count - size, size - FEW)
    return Trace(made, reserved)


def combine(off: Trace, on: Trace, first: int, count: int) -> Trace:
    """The trace of `count` layers of which the `first` recompute, from that of none and of all.

    While a layer that recomputes goes back, all behind it is done with, as if they all did; while
    another goes forward or back, it is as if none did, but for what the `first` have not kept.
    """
    made = dict(on.peaks)
    ends = off.peaks["forward.after"], on.peaks["forward.after"]
    spared = {
        kind: (size - ends[1].kinds.get(kind, 0)) * first // count
        for kind, size in ends[0].kinds.items()
    }
    for name in ("forward.after", "backward.after"):
        made[name] = _without(off.peaks[name], spared)
    for name in [name for name in made if ".layer." in name]:
        del made[name]
    for phase in ("forward", "backward"):
        for place in sorted({0, first - 1}):
            made[f"{phase}.layer.{place}"] = _at(on, phase, place, count)
        for place in sorted({first, count - 1}):
            made[f"{phase}.layer.{place}"] = _without(_at(off, phase, place, count), spared)
    reserved = None
    if off.reserved is not None and on.reserved is not None:
        reserved = off.reserved - (off.reserved - on.reserved) * first // count
    return Trace(made, reserved)


def _at(found: Trace, phase: str, place: int, count: int) -> Peak:
    """The peak of a layer's part; between those that were traced it is a straight line."""
    name = f"{phase}.layer.{place}"
    if name in found.peaks:
        return found.peaks[name]
    low, high = (found.peaks[f"{phase}.layer.{end}"] for end in (1, count - 2))
    there = _line(low, high, low, place - 1, count - 3)
    slack = _to(low.counted - low.total, high.counted - high.total, 0, place - 1, count - 3)
    counted = there.total + low.counted - low.total + slack if low.counted else 0
    module = there.module.replace(".1", f".{place}", 1)
    return Peak(there.total, there.kinds, there.operation, module, counted)


def _without(peak: Peak, spared: dict[str, int]) -> Peak:
    kinds = {kind: size - spared.get(kind, 0) for kind, size in peak.kinds.items()}
    total = peak.total - sum(spared.values())
    counted = int(peak.counted * total / peak.total) if peak.counted else 0
    return Peak(total, kinds, peak.operation, peak.module, counted)


def _with_more_weights(few: Trace, more: Trace, further: int, by: int) -> Peak:
    """Evaluation keeps nothing of a layer but its weights and moments."""
    start = few.peaks["evaluate"]
    low, high = few.peaks["optimizer"].kinds, more.peaks["optimizer"].kinds
    kinds = dict(start.kinds)
    for kind in ("weights", "optimizer"):
        kinds[kind] = _to(low.get(kind, 0), high.get(kind, 0), kinds.get(kind, 0), further, by)
    total = start.total + sum(kinds.values()) - sum(start.kinds.values())
    slack = start.counted - start.total if start.counted else 0
    return Peak(total, kinds, start.operation, start.module, total + slack)


def _line(few: Peak, more: Peak, start: Peak, further: int, by: int) -> Peak:
    """`start` with `further` layers more; `more` has `by` layers more than `few`."""
    kinds = {
        kind: _to(few.kinds.get(kind, 0), more.kinds.get(kind, 0), size, further, by)
        for kind, size in start.kinds.items()
    }
    total = _to(few.total, more.total, start.total, further, by)
    return Peak(total, kinds, start.operation, start.module, start.counted)


def _counted(peak: Peak, total: int, layers: float) -> int:
    """Bytes of the allocator's blocks for `total` bytes, with `layers` times as many layers."""
    if not peak.counted:
        return 0
    slack = peak.counted - peak.total
    return total + int(slack * (layers + total / max(1, peak.total)) / 2)


def _to(few: int, more: int, start: int, further: int, by: int) -> int:
    return start + (more - few) * further // by
