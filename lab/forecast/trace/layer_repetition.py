"""Layer repetition: trace five identical layers and repeat the middle one's events for the rest.

Layers that are alike do the same to memory, each with tensors of its own. So the log of a deep
model is that of a short one with the events of a middle layer said again for each further layer,
its storages under new numbers. The allocator replays the whole log: nothing is extrapolated.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from lab.forecast.trace.allocation_log import Event, Log, Trace
from lab.forecast.trace.traced_step import LayersDiffer, TracedStep
from lab.forecasts import How
from lab.recent import Recent

TRACED_LAYERS = 5  # that stand for a longer run of their kind: two at each end, and one between
LAYER = ".layer."
_logs: Recent[str, Log] = Recent(64)  # of short models, for the same layers in another number


def step(traced: TracedStep, *, whole: bool = False) -> tuple[Trace, How]:
    """(what the step allocates, whether layers were repeated for it): they are where enough of them
    are alike, unless the `whole` model is to be traced."""
    chosen, stands_for = shorten(layer_kinds(traced))
    if not whole and not traced.has_prefix and len(chosen) < len(traced.layers):
        try:
            short = traced.of_layers(chosen)
            key = short.key()
            log = _logs.get(key) or _logs.put(key, short.log(is_short=True))
            return extend(log, stands_for).read(on_gpu=traced.on_gpu), How.REPEATED_LAYERS
        except LayersDiffer:
            pass
    return traced.log().read(on_gpu=traced.on_gpu), How.EVERY_LAYER


def layer_kinds(traced: TracedStep) -> list[tuple[Hashable, ...]]:
    """What tells one layer from another: its tensors, its attention, whether it recomputes."""
    config, layers, train, batch = traced.config, traced.layers, traced.spec.train, traced.batch
    some = train.checkpointed_layers or len(layers)
    recomputed = some if train.activation_checkpointing == "on" else 0
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    # a window that is longer than the rows changes nothing
    is_short = isinstance(window, int) and batch.longest < window and not batch.packed
    if not isinstance(kinds, (list, tuple)) or len(kinds) != len(layers):
        kinds = [""] * len(layers)
    elif is_short and set(kinds) <= {"sliding_attention", "full_attention"}:
        kinds = [""] * len(layers)
    return [
        (layer, kind, index < recomputed)
        for index, (layer, kind) in enumerate(zip(layers, kinds, strict=True))
    ]


def shorten(kinds: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """(the layers of a short model, for each layer of the whole one its place in the short one).

    A run of more than TRACED_LAYERS layers of one kind keeps its first, its last and one between.
    """
    chosen: list[int] = []
    stands_for: list[int] = []
    for _, run in itertools.groupby(range(len(kinds)), key=lambda index: kinds[index]):
        layers = list(run)
        first, more = len(chosen), len(layers) - TRACED_LAYERS
        chosen += layers if more <= 0 else [*layers[:3], *layers[-2:]]
        short_indices = list(range(first, len(chosen)))
        stands_for += (
            short_indices
            if more <= 0
            else [*short_indices[:3], *[first + 2] * more, *short_indices[3:]]
        )
    return chosen, stands_for


def repeated(launches: dict[str, int], stands_for: Sequence[int]) -> dict[str, int]:
    """Kernels by segment of the whole model, from those of the short one: for each layer those of
    the one that stands for it, whether they are in a layer or, outside, on one's tensors."""
    whole: dict[str, int] = {}
    for segment, count in launches.items():
        sign = "@" if "@" in segment else LAYER
        phase, _, layer = segment.partition(sign)
        indices = [index for index, stand in enumerate(stands_for) if str(stand) == layer]
        whole |= {f"{phase}{sign}{index}": count for index in indices} or {segment: count}
    return whole


def extend(short: Log, stands_for: list[int]) -> Log:
    """The log of a step of a model of whose layers each is like the one of `short` that stands for
    it. Raises LayersDiffer."""
    return _Extension(short, stands_for).log()


Name = tuple[str, int | None, int]  # part of the step, layer, number there


class _Extension:
    """Storages of the short model are known by where they appear: the part of the step, the layer
    if it is one's, and the number there. A further layer's are the same with another layer."""

    def __init__(self, short: Log, stands_for: list[int]) -> None:
        self.short, self.stands_for = short, stands_for
        self.indices_of: dict[int, list[int]] = defaultdict(
            list
        )  # in the whole, by the short one's
        for index, stand in enumerate(stands_for):
            self.indices_of[stand].append(index)
        self.middles = [stand for stand, indices in self.indices_of.items() if len(indices) > 1]
        self.parts = self._parts()
        self.names = self._names()
        self._check()
        self.whole = Log([], {})
        self.numbers: dict[Name, int] = {}

    def _parts(self) -> list[tuple[str, int | None, list[Event]]]:
        """(part of the step, layer or None, events) in order; each is one stretch of the log."""
        parts = []
        for segment, events in itertools.groupby(self.short.events, key=lambda e: e.segment):
            part, _, layer = segment.partition(LAYER)
            parts.append((part, int(layer) if layer else None, list(events)))
        if max(Counter((part, layer) for part, layer, _ in parts).values()) > 1:
            raise LayersDiffer("a part of the step is come back to")
        return parts

    def _names(self) -> dict[int, Name]:
        names: dict[int, Name] = {}
        counts: Counter[tuple[str, int | None]] = Counter()
        for part, layer, events in self.parts:
            for event in events:
                if event.size > 0 and event.storage not in names:
                    owner = layer if layer is not None else self.short.layer_of.get(event.storage)
                    names[event.storage] = part, owner, counts[part, owner]
                    counts[part, owner] += 1
        return names

    def _check(self) -> None:
        """The layers around a middle one must be as it is, or it could not stand for them."""
        sizes: dict[tuple[str, int | None], dict[int, int]] = defaultdict(dict)
        for event in self.short.events:
            part, layer, count = self.names[event.storage]
            if layer is not None and event.size > 0:
                sizes[part, layer].setdefault(count, event.size)
        for part in {part for part, _ in sizes}:
            for middle in self.middles:
                before, itself, after = (sizes[part, middle + step] for step in (-1, 0, 1))
                if not before == itself == after:
                    raise LayersDiffer(f"the layers differ in {part}")

    def log(self) -> Log:
        done: set[str] = set()
        for part, layer, events in self.parts:
            if layer is None:
                self._say_between(part, events)
            elif part not in done:
                done.add(part)
                self._say_layers(part)
        self.whole.launches = repeated(self.short.launches, self.stands_for)
        return self.whole

    def _say_layers(self, part: str) -> None:
        """All layers of a phase in their order: from the last to the first in the backward pass."""
        there = {layer: events for other, layer, events in self.parts if other == part}
        order = range(len(self.stands_for))
        for whole in reversed(order) if part == "backward" else order:
            stand = self.stands_for[whole]
            if stand not in there:
                raise LayersDiffer(f"nothing happens to layer {stand} in {part}")
            self._emit(f"{part}{LAYER}{whole}", there[stand], stand, whole)

    def _say_between(self, part: str, events: list[Event]) -> None:
        """A part that is in no layer; what it does to a middle layer's storages it does to those
        of all that it stands for."""
        for layer, some in itertools.groupby(events, key=lambda e: self.names[e.storage][1]):
            stretch = list(some)
            for whole in [layer] if layer is None else self.indices_of[layer]:
                self._emit(part, stretch, layer, whole)

    def _emit(
        self, segment: str, events: list[Event], stand: int | None, whole: int | None
    ) -> None:
        """`events` of the short model's layer `stand` as they are in layer `whole`."""
        moves = self._moves(events, stand, whole)
        shift = stand != whole
        old, new = f".{stand}", f".{whole}"
        numbers, events_of_whole = self.numbers, self.whole.events
        for event in events:
            part, layer, count = self.names[event.storage]
            name = part, moves[layer], count
            storage = numbers.get(name)
            if storage is None:
                storage = numbers[name] = len(numbers)
                if event.storage in self.short.kind_of:
                    self.whole.kind_of[storage] = self.short.kind_of[event.storage]
            module = event.module.replace(old, new, 1) if shift else event.module
            events_of_whole.append(Event(segment, storage, event.size, event.operation, module))

    def _moves(
        self, events: list[Event], stand: int | None, whole: int | None
    ) -> dict[int | None, int | None]:
        """For each layer that `events` of `stand` reach to, the one that is so to `whole`."""
        moves: dict[int | None, int | None] = {}
        for layer in {self.names[event.storage][1] for event in events}:
            if layer is None or stand is None or whole is None:
                moves[layer] = layer
                continue
            moved = whole + layer - stand
            if not 0 <= moved < len(self.stands_for):
                raise LayersDiffer("an event reaches over the end of the layers")
            other = self.stands_for[moved]
            if other != layer and not any(
                abs(layer - middle) <= 1 and abs(other - middle) <= 1 for middle in self.middles
            ):
                raise LayersDiffer("an event reaches over to another kind of layer")
            moves[layer] = moved
        return moves
