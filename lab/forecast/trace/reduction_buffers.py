"""What CUDA's reduction kernels take from the allocator beside their result.

A sum over leading dimensions that is split over several thread blocks puts their parts into a
buffer, for which torch asks for 32 to 128 times of what is written. Follows `setReduceConfig` and
`global_memory_size` of aten/src/ATen/native/cuda/Reduce.cuh (2.11 and 2.13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

REDUCTIONS = ("sum", "mean")
# Blocks that fill the card. Of an H100: the memory of a step is traced once for all cards, and one
# with fewer multiprocessors splits less.
MULTIPROCESSORS = 132
THREADS_PER_MULTIPROCESSOR = 2048
MAX_THREADS = 512
WARP = 32
MIN_VALUES, MAX_VALUES = 16, 256  # that a thread adds up
ACCUMULATOR = 4  # bytes: sums of 16 bits are in float32


def reduction_buffer(input: torch.Tensor, dims: Sequence[int]) -> int:
    """Bytes of the buffer of a sum of `input` over `dims`; 0 without one, or where it is small: a
    sum along the fastest dimension leaves one number a block."""
    if not input.dim():
        return 0
    reduced = {dim % input.dim() for dim in dims}
    extents = [
        (input.stride(dim), input.shape[dim], dim in reduced)
        for dim in range(input.dim())
        if input.shape[dim] > 1
    ]
    num_outputs = math.prod(size for _, size, is_reduced in extents if not is_reduced)
    inputs = math.prod(size for _, size, is_reduced in extents if is_reduced)
    if inputs == 1 or num_outputs == 1:
        return 0
    stride, width, is_fastest_reduced = min(extents)
    if is_fastest_reduced:
        return 0
    vector = 1
    if stride == 1:  # several neighbours are read at once
        strides = [other for other, _, _ in extents if other != 1]
        aligned = [n for n in (4, 2) if not width % n and all(not s % n for s in strides)]
        vector = aligned[0] if aligned else 1
    threads = MAX_THREADS // vector
    columns = _power_of_two(max(1, num_outputs // vector))
    rows = _power_of_two(inputs)
    block_width = min(columns, WARP)
    block_height = min(rows, threads // block_width)
    block_width = min(columns, threads // block_height)
    if inputs < min(block_height * 16, MAX_VALUES):
        return 0  # each warp has an output of its own
    values = -(-inputs // block_height)
    grid = -(-(num_outputs // vector) // block_width)
    blocks = MULTIPROCESSORS * (THREADS_PER_MULTIPROCESSOR // (block_width * block_height))
    if values < MAX_VALUES or grid > blocks:
        return 0
    parts = max(min(-(-blocks // grid), -(-values // MIN_VALUES)), -(-values // MAX_VALUES))
    return ACCUMULATOR * num_outputs * parts * block_width * vector if parts > 1 else 0


def _power_of_two(number: int) -> int:
    """The largest that is not above `number`."""
    return 1 << (number.bit_length() - 1)
