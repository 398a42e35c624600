"""What a log of storages says: the peak of each part of the step, and the allocator's blocks."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lab.forecast.trace.caching_allocator import Allocator, Block

DEFAULT_KIND = {"forward.after": "loss", "backward.after": "loss"}  # what has no other name there
BEFORE = ("load", "warm")  # the segments before the step itself
MAX_REPLAYED_STEPS = 2  # that are replayed after the second, until the peaks stay


class Event(NamedTuple):
    """`size` bytes more (a storage appears) or less (it is gone) within a segment of the step."""

    segment: str
    storage: int
    size: int
    operation: str
    module: str


@dataclass(frozen=True)
class Peak:
    """The highest point of one segment: bytes by kind, what was running, and the bytes of the
    allocator's blocks (`counted`), which hold a little more than the tensors."""

    total: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)
    operation: str = ""
    module: str = ""
    counted: int = 0


@dataclass(frozen=True)
class Trace:
    """The peaks of the segments of a step, and what CUDA's allocator reserves for it."""

    peaks: dict[str, Peak]
    reserved: int | None
    launches: int = 0  # kernels of a micro-batch and its update


def launches_of_step(launches: dict[str, int]) -> int:
    """Kernels of the forward and the backward pass and of the update, from those by segment."""
    return sum(
        count
        for segment, count in launches.items()
        if segment.startswith(("forward", "backward", "optimizer"))
    )


@dataclass(frozen=True)
class Blocks:
    """What CUDA's allocator counts. `peaks`: the highest of each segment; `changes`: for each
    segment of the step (bytes at its end, bytes at its highest), less those at its start;
    `resting`: bytes between two steps, and those of them that are of layers' weights and state;
    `reserved`: bytes that it holds."""

    peaks: dict[str, int]
    changes: dict[str, tuple[int, int]]
    resting: int
    resting_of_layers: int
    reserved: int


@dataclass
class Log:
    """The events of a step in order; of the storages that have a name what they are, and of those
    that belong to a decoder layer's weights which layer's."""

    events: list[Event]
    kind_of: dict[int, str]
    layer_of: dict[int, int] = field(default_factory=dict)
    launches: dict[str, int] = field(default_factory=dict)  # kernels by segment

    def read(self, *, on_gpu: bool) -> Trace:
        """The peaks of all segments but the first step's; on a GPU with the allocator's blocks."""
        peaks = self.peaks()
        peaks.pop("warm", None)
        reserved = None
        if on_gpu:
            blocks = self.blocks()
            reserved = blocks.reserved
            for segment, peak in peaks.items():
                counted = max(peak.total, blocks.peaks.get(segment, 0))
                peaks[segment] = replace(peak, counted=counted)
        return Trace(peaks, reserved, launches_of_step(self.launches))

    def with_kinds(self) -> Iterator[tuple[Event, str]]:
        """The events, each with what its storage is."""
        kinds: dict[int, str] = {}
        for event in self.events:
            kind = kinds.get(event.storage)
            if kind is None:
                kind = self.kind_of.get(event.storage) or DEFAULT_KIND.get(
                    event.segment, "activations"
                )
                kinds[event.storage] = kind
            yield event, kind

    def peaks(self) -> dict[str, Peak]:
        """The peak of each segment by the bytes of tensors."""
        live: dict[str, int] = defaultdict(int)
        total = 0
        peaks: dict[str, Peak] = {}
        for event, kind in self.with_kinds():
            peak = peaks.get(event.segment)
            if peak is None:  # what it begins with counts too
                peak = peaks[event.segment] = Peak(total, dict(live))
            live[kind] += event.size
            total += event.size
            if total > peak.total:
                peaks[event.segment] = Peak(total, dict(live), event.operation, event.module)
        return peaks

    def blocks(self) -> Blocks:
        """What the allocator counts and reserves, with the step repeated until its free blocks are
        where they stay. The optimizer's state appears after the first backward pass, as in a
        run."""
        parts = [
            (segment, [(event.storage, event.size) for event in events])
            for segment, events in itertools.groupby(self.events, key=lambda e: e.segment)
        ]
        start = [part for part in parts if part[0] == "load"]
        state = [
            (segment, [event for event in events if self.kind_of.get(event[0]) == "optimizer"])
            for segment, events in parts
            if segment == "warm"
        ]
        step = [part for part in parts if part[0] not in BEFORE]
        after = next((i for i, part in enumerate(step) if part[0] == "optimizer"), len(step))
        allocator = Allocator()
        block_of: dict[int, Block] = {}
        changes: dict[str, tuple[int, int]] = {}

        def replay(parts: list[tuple[str, list[tuple[int, int]]]]) -> dict[str, int]:
            peaks: dict[str, int] = {}
            changes.clear()
            for segment, events in parts:
                begin, highest = allocator.allocated, peaks.get(segment, 0)
                top = begin
                for storage, size in events:
                    if size > 0:
                        if storage not in block_of:
                            block_of[storage] = allocator.take(size)
                            highest = max(highest, allocator.allocated)
                            top = max(top, allocator.allocated)
                    elif storage in block_of:
                        allocator.give(block_of.pop(storage))
                peaks[segment] = max(highest, allocator.allocated)
                before, most = changes.get(segment, (0, 0))
                net = before + allocator.allocated - begin
                changes[segment] = net, max(most, before + top - begin)
            return peaks

        first = replay(start)
        replay(step[:after])
        replay(state)
        replay(step[after:])
        peaks = replay(step)
        for _ in range(MAX_REPLAYED_STEPS):
            before, peaks = peaks, replay(step)
            if peaks == before:
                break
        of_layers = sum(
            block.size for storage, block in block_of.items() if storage in self.layer_of
        )
        return Blocks(
            {**first, **peaks}, dict(changes), allocator.allocated, of_layers, allocator.reserved
        )
