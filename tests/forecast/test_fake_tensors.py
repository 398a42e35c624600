"""What a product beside a quantised weight takes for a moment, counted by hand."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lab.forecast.trace.allocation_tracker import AllocationTracker
from lab.forecast.trace.fake_tensors import Int8Product

ROWS = 512


@pytest.mark.parametrize("threshold", [6.0, 0.0], ids=["outliers are looked for", "no outliers"])
@pytest.mark.parametrize(("wide", "out"), [(8192, 512), (512, 8192)], ids=["narrows", "widens"])
def test_a_product_of_8_bits_takes_what_the_kernels_of_the_card_take(
    threshold: float, wide: int, out: int
) -> None:
    """Forward the input in float16 and 8 bits and the look for outliers, then sums of 32 bits and
    the output twice; backward the weight in 16 bits."""
    tracker = AllocationTracker(on_gpu=True)
    with FakeTensorMode():
        hidden = torch.empty(ROWS, wide, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(out * wide, dtype=torch.uint8)
        with tracker:
            tracker.register([hidden, weight], "weights")
            output = Int8Product.apply(hidden, weight, (out, wide), threshold)
            events = len(tracker.events)
            output.sum().backward()
    given = 2 * ROWS * wide + out * wide
    live = list(accumulate(event.size for event in tracker.log().events))
    entered = 2 * ROWS * wide + ROWS * wide  # in float16, and in 8 bits
    looked = (2 + 1) * ROWS * wide if threshold else 0  # its size, and whether that is large
    multiplied = ROWS * wide + (4 + 2 + 2) * ROWS * out
    small = 8 * ROWS + wide  # scales of the rows, and whether a column has an outlier
    expected = given + max(entered + looked, multiplied)
    assert 0 <= max(live[:events]) - expected <= small
    backward = given + 2 * ROWS * out + 2 * out * wide + 2 * ROWS * wide  # with a gradient expanded
    assert 0 <= max(live[events:]) - backward <= 2 * ROWS * out + small
