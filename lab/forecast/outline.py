"""The outline of a step: its first and last layer and one of each kind traced, the rest added up.

A traced layer tells for each part of the step how many bytes are there afterwards, and how many at
its highest point. Layers that are alike do the same, so the whole model's step is a sum: weights
and optimizer state, which are counted exactly, and then part after part. That takes a second where
all events of a deep model take several, and nothing here knows what a layer is made of.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lab.forecast.formula import ModelSizes
from lab.forecast.trace.allocation_log import BEFORE, Log, Peak, Trace, launches_of_step
from lab.forecast.trace.layer_repetition import LAYER, layer_kinds, repeated
from lab.forecast.trace.traced_step import TracedStep
from lab.methods import Method
from lab.recent import Recent


@dataclass(frozen=True)
class Part:
    """What one part of the step does to memory, in bytes more than at its start: by kind at its end
    (`net`) and at its highest point (`top`), and in all (`net_bytes`, `top_bytes`), which counts
    the blocks of CUDA's allocator on a GPU and tensors elsewhere.

    Of a part outside the layers, `net_of` and `top_of` are what it does to tensors of a layer, by
    its place: autocast's copies of weights, which it lets go when the forward pass has ended.
    `early`: its highest point before that."""

    net: dict[str, int] = field(default_factory=dict)
    top: dict[str, int] = field(default_factory=dict)
    net_bytes: int = 0
    top_bytes: int = 0
    operation: str = ""
    module: str = ""
    net_of: dict[int, int] = field(default_factory=dict)
    top_of: dict[int, int] = field(default_factory=dict)
    early: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outline:
    """The parts of a step of a short model, and for each layer of the whole one its place there.

    `unused`: bytes of the blocks of the short model's weights and state beyond their tensors, and
    those of them that are in layers; `left`: bytes that one step leaves for the next.
    """

    parts: dict[str, Part]
    layers: int  # of the short model
    unused: int = 0
    unused_of_layers: int = 0
    left: int = 0
    stands_for: tuple[int, ...] = ()
    launches: dict[str, int] = field(default_factory=dict)  # kernels by segment


_outlines: Recent[str, Outline] = Recent(256)


def outline(step: TracedStep) -> Outline:
    """The outline of a step. Raises LayersDiffer, and what an operation that cannot be traced
    raises."""
    chosen, stands_for = choose_layers(layer_kinds(step))
    short = _short(step.of_layers(chosen))
    others = [index for index in range(len(step.layers)) if index not in chosen]
    # a prefix comes before the layers; a penalty on the weights of every layer comes after them
    if others and (step.has_prefix or type(step.method).penalty is not Method.penalty):
        longer = _short(step.of_layers(sorted([*chosen, others[0]])))
        parts = {
            segment: part if LAYER in segment else _along(part, longer.parts[segment], len(others))
            for segment, part in short.parts.items()
        }
        # what happens to a layer's tensors there is in that line already
        parts = {
            segment: replace(part, net_of={}, top_of={}, early={})
            for segment, part in parts.items()
        }
        short = replace(short, parts=parts)
    return replace(short, stands_for=tuple(stands_for))


def _short(step: TracedStep) -> Outline:
    """The parts of a step of a short model."""
    key = step.key()
    known = _outlines.get(key)
    if known is not None:
        return known
    log = step.log(is_short=True)
    return _outlines.put(key, read(log, len(step.layers), on_gpu=step.on_gpu))


def choose_layers(kinds: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """(the layers of a short model, for each layer of the whole one its place in the short one):
    the first, the last, and one of each kind between."""
    last = len(kinds) - 1
    between: dict[Hashable, int] = {}
    for index in range(1, last):
        between.setdefault(kinds[index], index)
    chosen = sorted({0, last, *between.values()}) if kinds else []
    position = {index: short for short, index in enumerate(chosen)}
    return chosen, [
        position[index if index in (0, last) else between[kind]] for index, kind in enumerate(kinds)
    ]


def read(log: Log, layers: int, *, on_gpu: bool) -> Outline:
    """The parts of a recorded step of a model with so many layers."""
    parts = _parts(log)
    if not on_gpu:
        return Outline(parts, layers, launches=log.launches)
    blocks = log.blocks()
    for segment, (net, top) in blocks.changes.items():
        parts[segment] = replace(parts[segment], net_bytes=net, top_bytes=top)
    # what a step leaves behind, its rows, is there once, before the next one begins
    left = sum(event.size for event in log.events if event.segment not in BEFORE)
    unused = blocks.resting - sum(event.size for event in log.events)
    in_layers = sum(event.size for event in log.events if event.storage in log.layer_of)
    unused_of_layers = blocks.resting_of_layers - in_layers
    return Outline(parts, layers, unused, unused_of_layers, left, launches=log.launches)


def _parts(log: Log) -> dict[str, Part]:
    """The parts by the bytes of tensors. One that is come back to goes on from where it was."""
    net: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    sums: dict[str, int] = defaultdict(int)
    parts: dict[str, Part] = {}
    layer_of: dict[int, int] = {}
    of_layers: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for event, kind in log.with_kinds():
        segment = event.segment
        _, _, layer = segment.partition(LAYER)
        if layer:
            layer_of.setdefault(event.storage, int(layer))
        elif event.storage in layer_of:
            of_layers[segment][layer_of[event.storage]] += event.size
        net[segment][kind] += event.size
        sums[segment] += event.size
        part = parts.setdefault(segment, Part())
        if sums[segment] > part.top_bytes:
            top, by_layer = dict(net[segment]), dict(of_layers[segment])
            part = parts[segment] = replace(
                part, top=top, top_bytes=sums[segment], top_of=by_layer,
                operation=event.operation, module=event.module,
            )  # fmt: skip
            if not by_layer:
                parts[segment] = replace(part, early=top)
    return {
        segment: replace(
            part, net=dict(net[segment]), net_bytes=sums[segment], net_of=dict(of_layers[segment])
        )
        for segment, part in parts.items()
    }


def whole_step(short: Outline, sizes: ModelSizes, gradient_accumulation_steps: int = 1) -> Trace:
    """The peaks of a step of the whole model, whose weights, state and gradients are `sizes`."""
    layers = range(len(short.stands_for))
    overhead = short.unused + short.left
    if short.layers:
        overhead += short.unused_of_layers * (len(layers) - short.layers) // short.layers
    rest = {"weights": sizes.weights, "optimizer": sizes.optimizer_in_memory}
    peaks = {"load": Peak(sizes.weights, {"weights": sizes.weights}, "given")}
    walk = _Walk(short, peaks, rest, overhead)
    if gradient_accumulation_steps > 1:
        # those of earlier passes; the short model's come with its own part
        short_gradients = short.parts["forward.before"].net.get("gradients", 0)
        walk.add("gradients", sizes.gradient_bytes - short_gradients)
        walk.adds_gradients = short_gradients > 0
    walk.go("forward.before")
    walk.through_layers("forward", layers)
    walk.go("forward.after")
    walk.go("backward.after")
    walk.through_layers("backward", reversed(layers))
    walk.go("backward.before")
    update = {**rest, "gradients": sizes.gradient_bytes, "activations": sizes.update_bytes}
    total = sum(update.values())
    peaks["optimizer"] = Peak(total, update, counted=total + overhead)
    walk = _Walk(short, peaks, rest, overhead)
    walk.go("evaluate.before")
    walk.through_layers("evaluate", layers)
    walk.go("evaluate.after")
    launches = launches_of_step(repeated(short.launches, short.stands_for))
    return Trace(peaks, None, launches)


class _Walk:
    """Goes through the parts of a step in order and writes the peak of each into `peaks`."""

    def __init__(
        self, short: Outline, peaks: dict[str, Peak], rest: dict[str, int], overhead: int
    ) -> None:
        self.short, self.peaks = short, peaks
        self.live: dict[str, int] = defaultdict(int, rest)
        self.blocks = sum(rest.values()) + overhead
        self.adds_gradients = True  # False: each goes into one that is there already
        self.others = {stand: count - 1 for stand, count in Counter(short.stands_for).items()}

    def add(self, kind: str, size: int) -> None:
        self.live[kind] += size
        self.blocks += size

    def _of_other_layers(self, by_layer: dict[int, int]) -> int:
        """What happens to the layers that the short model has not, as to the one for each. What the
        last but one hands on goes after the last one, in a model of any depth: the first says what
        is left at the end of it and all others."""
        sizes = by_layer | {self.short.layers - 2: by_layer.get(0, 0)}
        return sum(self.others.get(layer, 0) * size for layer, size in sizes.items())

    def through_layers(self, phase: str, layers: Iterable[int]) -> None:
        for index in layers:
            stand = self.short.stands_for[index]
            self.go(f"{phase}{LAYER}{stand}", f"{phase}{LAYER}{index}", f".{stand}", f".{index}")

    def go(self, source: str, segment: str = "", old: str = "", new: str = "") -> None:
        """Through the part `source` of the short model, as `segment` of the whole one."""
        part = self.short.parts.get(source, Part())
        top, top_bytes = dict(part.top), part.top_bytes
        more = self._of_other_layers(part.top_of)
        if sum(part.early.values()) > top_bytes + more:
            top, top_bytes, more = dict(part.early), sum(part.early.values()), 0
        kinds = dict(self.live)
        for kind, size in (*top.items(), ("activations", more)):
            kinds[kind] = kinds.get(kind, 0) + size
        self.peaks[segment or source] = Peak(
            sum(kinds.values()), kinds, part.operation,
            part.module.replace(old, new, 1) if old else part.module,
            self.blocks + top_bytes + more,
        )  # fmt: skip
        for kind, size in part.net.items():
            self.live[kind] += size
        self.blocks += part.net_bytes
        self.add("activations", self._of_other_layers(part.net_of))
        if not self.adds_gradients:
            self.add("gradients", -part.net.get("gradients", 0))


def at_rows(few: tuple[int, Outline], many: tuple[int, Outline], rows: int) -> Outline:
    """The outline at `rows` rows, from those at two other numbers: sizes are linear in rows, but
    where a chunk of the loss is full."""
    (first, start), (second, end) = few, many
    steps = (rows - first) / (second - first)
    parts = {
        segment: _along(start.parts.get(segment, Part()), part, steps)
        for segment, part in end.parts.items()
    }
    return replace(end, parts=parts, left=round(start.left + steps * (end.left - start.left)))


def _along(first: Part, second: Part, steps: float) -> Part:
    """The part that is so many steps after `first`, of which `second` is the next."""

    def line(start: int, end: int) -> int:
        return round(start + steps * (end - start))

    def lines(start: dict[Any, int], end: dict[Any, int]) -> dict[Any, int]:
        return {
            kind: line(start.get(kind, 0), end.get(kind, 0)) for kind in start.keys() | end.keys()
        }

    return replace(
        second,
        net=lines(first.net, second.net),
        top=lines(first.top, second.top),
        net_of=lines(first.net_of, second.net_of),
        top_of=lines(first.top_of, second.top_of),
        early=lines(first.early, second.early),
        net_bytes=line(first.net_bytes, second.net_bytes),
        top_bytes=line(first.top_bytes, second.top_bytes),
    )
