"""Bottleneck adapters: small networks inside the decoder layers, and their place there.

Legend: h hidden size, b bottleneck size. They hang on forward hooks, so that names and tensors of
the base stay as they are and taking them out leaves nothing behind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from lab.models.decoder_structure import decoder_layers, hidden_size, sublayers

CHILD = "bottleneck"  # the adapter's name below the module that it hangs on


class Bottleneck(nn.Module):
    """scale * up(act(down(x))): (..., h) to (..., b) to (..., h), in the adapter's own type."""

    def __init__(
        self, h: int, b: int, activation: str, dropout: float, scale: float, *, is_parallel: bool
    ) -> None:
        super().__init__()
        self.down = nn.Linear(h, b)
        self.up = nn.Linear(b, h)
        self.act = ACT2FN[activation]
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        self.is_parallel = is_parallel
        # of a parallel adapter: what it adds, kept from the feed-forward's input to its output
        self.pending: torch.Tensor | None = None

    def start(self, std: float) -> None:
        """Down as a linear layer starts; up normal with `std`, cut at two (0: exactly identity)."""
        if std:
            nn.init.trunc_normal_(self.up.weight, std=std, a=-2 * std, b=2 * std)
        else:
            nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.act(self.down(x.to(self.down.weight.dtype)))
        return (self.dropout(self.up(inner)) * self.scale).to(x.dtype)


def insert(
    model: Any,
    *,
    kind: str,
    size: int,
    activation: str,
    dropout: float,
    scale: float,
    start_std: float,
    dtype: torch.dtype,
) -> None:
    """Put new adapters into every layer of `model`, on its device; `kind` is houlsby, pfeiffer,
    feed-forward or parallel."""
    width = hidden_size(model)
    for layer in decoder_layers(model)[1]:
        parts = sublayers(layer)
        device = next(layer.parameters()).device
        # a layer gives back its input plus what its parts have added: the residual stream
        modules = {"houlsby": [parts.attention, parts.last], "pfeiffer": [layer]}.get(
            kind, [parts.last]
        )
        for module in modules:
            adapter = Bottleneck(
                width, size, activation, dropout, scale, is_parallel=kind == "parallel"
            )
            adapter.start(start_std)
            module.add_module(CHILD, adapter.to(device, dtype))
            if kind == "parallel":
                _hook_parallel(parts.first, module)
            else:
                module.register_forward_hook(_after)


def _after(module: Any, inputs: Any, output: Any) -> Any:
    """x + adapter(x) of the module's output; some return a tuple that starts with it."""
    if isinstance(output, tuple):
        return (output[0] + module.bottleneck(output[0]), *output[1:])
    return output + module.bottleneck(output)


def _hook_parallel(first: Any, last: Any) -> None:
    """The adapter reads what goes into `first` and is added to what comes out of `last`."""
    if first is last:
        last.register_forward_hook(_beside, with_kwargs=True)
        return
    adapter = getattr(last, CHILD)

    def keep(module: Any, inputs: Any, named: Any) -> None:
        adapter.pending = adapter(_first(inputs, named))

    first.register_forward_pre_hook(keep, with_kwargs=True)
    last.register_forward_hook(_add_pending)


def _first(inputs: Any, named: Any) -> Any:
    return inputs[0] if inputs else next(iter(named.values()))


def _beside(module: Any, inputs: Any, named: Any, output: Any) -> Any:
    added = module.bottleneck(_first(inputs, named))
    if isinstance(output, tuple):
        return (output[0] + added, *output[1:])
    return output + added


def _add_pending(module: Any, inputs: Any, output: Any) -> Any:
    adapter = module.bottleneck
    added, adapter.pending = adapter.pending, None
    return output + added


def adapters(model: Any) -> dict[str, Bottleneck]:
    """The adapters of `model` by full name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, Bottleneck)}


def remove(model: Any) -> None:
    """Take all adapters out; the base's own tensors were never touched."""
    ours = {_after, _beside, _add_pending}
    for module in list(model.modules()):
        for key, hook in list(module._forward_hooks.items()):
            if hook in ours:
                del module._forward_hooks[key]
        for key, hook in list(module._forward_pre_hooks.items()):
            if getattr(hook, "__module__", "") == __name__:
                del module._forward_pre_hooks[key]
        if isinstance(getattr(module, CHILD, None), Bottleneck):
            delattr(module, CHILD)
