"""Buffers of CUDA's reductions, against what an H100 was seen to allocate."""

from __future__ import annotations

import pytest
import torch

from lab.forecast.trace.allocation_tracker import AllocationTracker
from lab.forecast.trace.reduction_buffers import reduction_buffer


@pytest.mark.parametrize(
    ("shape", "dims", "measured"),
    [
        # the gradient of IA3's scale of 8,192 channels, over 4 rows of 1,024 tokens
        ((4, 1024, 8192), (0, 1), 138_412_032),
        # the gradient of a factor of LoKr's Kronecker product
        ((32, 64, 64, 128), (0, 2), 134_217_728),
    ],
)
def test_the_buffers_are_those_of_the_card(
    shape: tuple[int, ...], dims: tuple[int, ...], measured: int
) -> None:
    tensor = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    assert reduction_buffer(tensor, dims) == measured
    assert reduction_buffer(tensor, [dim - tensor.dim() for dim in dims]) == measured


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((4096, 8192), (1,)),  # along the fastest dimension
        ((64, 8192), (0,)),  # few values for each thread
        ((512, 8192), (0,)),  # 128 for each
        ((4096, 4_000_000), (0,)),  # more outputs than the card has blocks
        ((1, 8192), (0,)),
        ((4096, 1), (0,)),
    ],
)
def test_a_sum_that_is_not_split_needs_none(shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    assert reduction_buffer(torch.empty(shape, device="meta"), dims) == 0


def test_a_view_is_read_by_its_strides() -> None:
    """The sum over the columns of a transposed matrix is one over its leading dimension."""
    tensor = torch.empty((4096, 8192), device="meta")
    expected = reduction_buffer(tensor, (0,))
    assert expected > 0
    assert reduction_buffer(tensor.t(), (1,)) == expected
    assert reduction_buffer(tensor.t(), (0,)) == 0
    assert reduction_buffer(torch.empty((), device="meta"), (0,)) == 0, "a number has no dimension"


def test_only_the_trace_of_a_gpu_counts_them() -> None:
    sizes = []
    for on_gpu in (True, False):
        tracker = AllocationTracker(on_gpu=on_gpu)
        tensor = torch.zeros(4096, 1024)
        with tracker:
            tensor.sum(0)
        sizes.append(max(event.size for event in tracker.log().events))
    assert sizes == [reduction_buffer(tensor, (0,)), 4096]
    assert sizes[0] > 1_000_000
