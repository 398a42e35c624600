"""The 8-bit products of bitsandbytes on a GPU, as a training run needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def forget_inputs() -> None:
    """Have the product of an input and a frozen 8-bit weight keep no input for its backward pass.

    bitsandbytes keeps every input although only the gradient of a weight that trains would read it,
    and keeps it where activation checkpointing cannot drop it. The gradients are the same without.
    """
    from bitsandbytes.autograd import _functions

    product = _functions.MatMul8bitLt
    if issubclass(product, _Forgetful):
        return

    class FrozenWeightProduct(_Forgetful, product):  # type: ignore[misc, valid-type]
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = product.forward(ctx, *inputs)
            if not ctx.needs_input_grad[1]:
                ctx.tensors = (None, None, None)
            return output

    _functions.MatMul8bitLt = FrozenWeightProduct  # type: ignore[misc]


class _Forgetful:
    """Marks the product that is already replaced."""


@contextmanager
def without_outliers(model: Any) -> Iterator[None]:
    """Within, each row of an input is rounded by itself.

    The columns that LLM.int8() computes in 16 bits are those where any row of the batch has a large
    value: what a row gives then depends, by a rounding, on the rows beside it. Questions about
    which tokens see which others have to be asked without.
    """
    states = [
        module.state
        for module in model.modules()
        if type(module).__name__ == "Linear8bitLt" and hasattr(module, "state")
    ]
    thresholds = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold
