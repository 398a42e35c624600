"""Several models decode together: one matrix product for all of them at each layer they share.

The models are trees of modules over the same weights (`weights.share_weights`). Each runs its own
unmodified forward pass in a greenlet, in one thread. A shared layer hands its input, the row of
one token, to the loop and waits; the loop joins the rows of all models that wait at the same
weight, multiplies once and hands the rows back. A product of one token is bound by reading the
weight from memory, so that joined rows cost little more than one row alone.

Prompts are read by each model alone: there the products are large enough on their own. A model
whose weights are its own (full fine-tuning, a 4-bit base, another base) takes its turn beside the
others and shares nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

_thread = threading.local()  # .loop: the greenlet of the loop while models decode together
TOKEN = "token"  # what a model hands over that has chosen a token and waits for the others


class SharedLinear(nn.Linear):
    """(…, in) → (…, out), joined with the rows of other models where one token is read."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _product(self, x, super().forward)


class SharedConv1D(Conv1D):
    """GPT-2's layer, whose weight is transposed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _product(self, x, super().forward)


SHARED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: SharedLinear, Conv1D: SharedConv1D}


def share_products(model: nn.Module) -> nn.Module:
    """`model` with each plain linear layer ready to be joined; results are unchanged.

    To be called on a base before variants are made from it: a copy of the tree and an adapter
    around a layer both keep the layer's class.
    """
    for module in model.modules():
        shared = SHARED.get(type(module))
        if shared is not None:
            module.__class__ = shared
    return model


def is_shared(model: nn.Module, base: nn.Module) -> bool:
    """Whether most linear weights of `model` are those of `base`, so that products are joined."""
    known = {layer.weight.data_ptr() for layer in _linear_layers(base)}
    addresses = [layer.weight.data_ptr() for layer in _linear_layers(model)]
    return sum(pointer in known for pointer in addresses) > len(addresses) / 2


def _linear_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if type(module) in SHARED.values()]


def _product(layer: Any, x: torch.Tensor, alone: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    loop = getattr(_thread, "loop", None)
    if loop is None or x.numel() != x.shape[-1]:
        return alone(x)
    return loop.switch((layer, alone, x))


def wait_for_others() -> None:
    """Called by a model between two tokens: all begin their next token together, so that they
    stand at the same layer. Without others it returns at once."""
    loop = getattr(_thread, "loop", None)
    if loop is not None:
        loop.switch(TOKEN)


def run_together(tasks: Sequence[Callable[[], None]]) -> None:
    """Run every task to its end in this thread, in inference mode.

    A task reads prompts and chooses tokens; it calls `wait_for_others` after each token and must
    not raise. With one task nothing is joined, and the result is that of the task alone to the
    bit.
    """
    import greenlet

    with torch.inference_mode():
        if len(tasks) == 1:
            tasks[0]()
            return
        _thread.loop = greenlet.getcurrent()
        try:
            _run([greenlet.greenlet(task) for task in tasks])
        finally:
            _thread.loop = None


def _run(greenlets: list[Any]) -> None:
    """Advance all, one product or one token at a time, until each has ended."""
    requests: dict[int, Any] = dict.fromkeys(range(len(greenlets)), TOKEN)
    while requests:
        at_layer = {index: request for index, request in requests.items() if request is not TOKEN}
        answers: dict[int, Any] = (
            _joined_products(at_layer) if at_layer else dict.fromkeys(requests, None)
        )
        for index, rows in answers.items():
            request = greenlets[index].switch(*(() if rows is None else (rows,)))
            if greenlets[index].dead:
                del requests[index]
            else:
                requests[index] = request


def _joined_products(requests: dict[int, Any]) -> dict[int, torch.Tensor]:
    """The output rows for each model that waits at a layer: one product a weight."""
    groups: dict[tuple[int, torch.dtype], list[int]] = {}
    for index, (layer, _, x) in requests.items():
        groups.setdefault((layer.weight.data_ptr(), x.dtype), []).append(index)
    outputs: dict[int, torch.Tensor] = {}
    for indices in groups.values():
        _, alone, first = requests[indices[0]]
        if len(indices) == 1:
            outputs[indices[0]] = alone(first)
            continue
        rows = torch.cat([requests[index][2].reshape(1, -1) for index in indices])
        # split, not indexed: each model gets a tensor in the shape it handed over
        for index, row in zip(indices, alone(rows).split(1), strict=True):
            outputs[index] = row.reshape(*requests[index][2].shape[:-1], -1)
    return outputs
