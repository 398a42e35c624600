"""The replay of CUDA's caching allocator, by its documented rules."""

from __future__ import annotations

import itertools
import random

from lab.forecast.trace.caching_allocator import MIB, Allocator


def test_segments_and_splits() -> None:
    memory = Allocator()
    small = memory.take(512)
    assert (memory.allocated, memory.reserved) == (512, 2 * MIB)
    large = memory.take(3 * MIB)  # from a segment of 20 MiB, split
    assert (memory.allocated, memory.reserved) == (512 + 3 * MIB, 22 * MIB)
    own = memory.take(11 * MIB + 512)  # still fits into what is left of it
    assert memory.reserved == 22 * MIB
    huge = memory.take(31 * MIB + 512)  # made to measure: 32 MiB, and what is left is not split
    assert memory.reserved == 54 * MIB
    assert huge.size == 32 * MIB
    for block in (small, large, own, huge):
        memory.give(block)
    assert memory.allocated == 0 and memory.reserved == 54 * MIB
    again = memory.take(19 * MIB)  # the parts of the 20 MiB segment have joined again
    assert memory.reserved == 54 * MIB and again.size == 20 * MIB  # 1 MiB is too little to split


def test_nothing_is_lost_or_given_twice() -> None:
    memory, drawn, held = Allocator(), random.Random(0), []
    for _ in range(3000):
        if held and drawn.random() < 0.5:
            memory.give(held.pop(drawn.randrange(len(held))))
        else:
            held.append(memory.take(512 * drawn.randrange(1, 40_000)))
        assert memory.allocated == sum(block.size for block in held) <= memory.reserved
    places = sorted((block.address, block.size) for block in held)
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(places))
