"""What a log of storages says: the peak of each part of the step, and the allocator's blocks."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from lab.forecast.trace.caching_allocator import Allocator, Block

BORN_AS = {"forward.after": "loss", "backward.after": "loss"}  # what has no other name there
BEFORE = ("load", "warm")  # the segments before the step itself
MOST_STEPS = 2  # that are replayed after the second, until the peaks stay


class Event(NamedTuple):
    """`size` bytes more (a storage appears) or less (it is gone) within a segment of the step."""

    segment: str
    storage: int
    size: int
    operation: str
    module: str


@dataclass
class Peak:
    """The highest point of one segment: bytes by kind, what was running, and the bytes of the
    allocator's blocks (`counted`), which hold a little more than the tensors."""

    total: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    operation: str = ""
    module: str = ""
    counted: int = 0


@dataclass(frozen=True)
class Trace:
    """The peaks of the segments of a step, and what CUDA's allocator reserves for it."""

    peaks: dict[str, Peak]
    reserved: int | None


@dataclass
class Log:
    """The events of a step in order; of the storages that have a name what they are, and of those
    that belong to a decoder layer's weights which layer's."""

    events: list[Event]
    kind_of: dict[int, str]
    layer_of: dict[int, int] = field(default_factory=dict)

    def read(self, *, on_gpu: bool) -> Trace:
        """The peaks of all segments but the first step's; on a GPU with the allocator's blocks."""
        found = self.peaks()
        found.pop("warm", None)
        reserved = None
        if on_gpu:
            counted, reserved = self.blocks()
            for segment, peak in found.items():
                peak.counted = max(peak.total, counted.get(segment, 0))
        return Trace(found, reserved)

    def peaks(self) -> dict[str, Peak]:
        """The peak of each segment by the bytes of tensors."""
        live: dict[str, int] = defaultdict(int)
        born: dict[int, str] = {}
        total = 0
        found: dict[str, Peak] = {}
        for event in self.events:
            kind = born.get(event.storage)
            if kind is None:
                kind = self.kind_of.get(event.storage) or BORN_AS.get(event.segment, "activations")
                born[event.storage] = kind
            peak = found.get(event.segment)
            if peak is None:  # what it begins with counts too
                peak = found[event.segment] = Peak(total, dict(live))
            live[kind] += event.size
            total += event.size
            if total > peak.total:
                peak.total, peak.kinds = total, dict(live)
                peak.operation, peak.module = event.operation, event.module
        return found

    def blocks(self) -> tuple[dict[str, int], int]:
        """(peak of each segment as the allocator counts it, bytes that it reserves), with the
        step repeated until its free blocks are where they stay. The optimizer's state appears
        after the first backward pass, as in a run."""
        parts = [
            (segment, [(event.storage, event.size) for event in events])
            for segment, events in itertools.groupby(self.events, key=lambda e: e.segment)
        ]
        start = [part for part in parts if part[0] == "load"]
        state = [
            (segment, [one for one in events if self.kind_of.get(one[0]) == "optimizer"])
            for segment, events in parts
            if segment == "warm"
        ]
        step = [part for part in parts if part[0] not in BEFORE]
        after = next((i for i, part in enumerate(step) if part[0] == "optimizer"), len(step))
        allocator = Allocator()
        held: dict[int, Block] = {}

        def replay(parts: list[tuple[str, list[tuple[int, int]]]]) -> dict[str, int]:
            found: dict[str, int] = {}
            for segment, events in parts:
                highest = found.get(segment, 0)
                for storage, size in events:
                    if size > 0:
                        if storage not in held:
                            held[storage] = allocator.take(size)
                            if allocator.allocated > highest:
                                highest = allocator.allocated
                    elif storage in held:
                        allocator.give(held.pop(storage))
                found[segment] = max(highest, allocator.allocated)
            return found

        first = replay(start)
        replay(step[:after])
        replay(state)
        replay(step[after:])
        found = replay(step)
        for _ in range(MOST_STEPS):
            before, found = found, replay(step)
            if found == before:
                break
        return {**first, **found}, allocator.reserved
