"""The CUDA caching allocator, replayed: the bytes that it counts and the bytes that it reserves.

`torch.cuda.max_memory_allocated` counts blocks, not tensors: a block of the large pool is split
only if more than 1 MiB would be left, so a tensor may hold up to 1 MiB that it does not need.
The rules are those of c10/cuda/CUDACachingAllocator.cpp with its default settings.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

MIB = 1 << 20
SMALL_REQUEST = MIB  # larger ones go to the large pool
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
OWN_SEGMENT = 10 * MIB  # from here on a segment is made to measure,
SEGMENT_STEP = 2 * MIB  # in these steps


@dataclass(eq=False, slots=True)
class Block:
    address: int
    size: int
    is_small: bool
    is_free: bool = False
    before: Block | None = None
    after: Block | None = None


class Allocator:
    """`allocated` and `reserved` are the bytes that torch reports under these names."""

    def __init__(self) -> None:
        self.allocated = 0
        self.reserved = 0
        self._top = 0
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}

    def take(self, size: int) -> Block:
        """A block for `size` bytes (a multiple of 512): the smallest free one that is enough."""
        is_small = size <= SMALL_REQUEST
        pool = self._free[is_small]
        index = bisect_left(pool, (size, -1))
        if index < len(pool):
            block = pool.pop(index)[2]
        else:
            block = self._segment(size, is_small)
        left = block.size - size
        if left >= 512 if is_small else left > MIB:
            rest = Block(block.address + size, left, is_small, True, block, block.after)
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            insort(pool, (rest.size, rest.address, rest))
        block.is_free = False
        self.allocated += block.size
        return block

    def give(self, block: Block) -> None:
        """The block back, joined with free neighbours."""
        self.allocated -= block.size
        pool = self._free[block.is_small]
        before, after = block.before, block.after
        if after is not None and after.is_free:
            self._remove(pool, after)
            block.size += after.size
            block.after = after.after
            if block.after is not None:
                block.after.before = block
        if before is not None and before.is_free:
            self._remove(pool, before)
            before.size += block.size
            before.after = block.after
            if before.after is not None:
                before.after.before = before
            block = before
        block.is_free = True
        insort(pool, (block.size, block.address, block))

    def _segment(self, size: int, is_small: bool) -> Block:
        if is_small:
            length = SMALL_SEGMENT
        elif size < OWN_SEGMENT:
            length = LARGE_SEGMENT
        else:
            length = -(-size // SEGMENT_STEP) * SEGMENT_STEP
        block = Block(self._top, length, is_small)
        self._top += length + SEGMENT_STEP  # a gap: segments are never joined
        self.reserved += length
        return block

    @staticmethod
    def _remove(pool: list[tuple[int, int, Block]], block: Block) -> None:
        del pool[bisect_left(pool, (block.size, block.address))]
