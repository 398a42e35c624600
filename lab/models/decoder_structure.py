"""Where a decoder's layers, attention and feed-forward parts are, found by shape, not by name.

No list of architectures: the layers are the module list that holds the most weights, attention
is the part of a layer that takes a mask, the feed-forward part is what else has matrices.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from lab.errors import LabError


@dataclass(frozen=True)
class Sublayers:
    """The parts of one decoder layer. Most have a feed-forward module, so that `first` and
    `last` are the same; where its linear layers lie in the layer itself (OPT), they differ."""

    attention: Any
    first: Any
    last: Any


def decoder_layers(model: Any) -> tuple[str, Any]:
    """(full name, ModuleList) of the decoder's layers. Raises LabError if there are none."""
    name, layers = _most_weights(model)
    if layers is None:
        raise LabError(
            f"No list of decoder layers was found in {type(model).__name__}.",
            "Choose a method that does not work by layers, such as lora.",
        )
    return name, layers


def layers_if_any(model: Any) -> list[Any]:
    """The decoder's layers in order; empty where the model has no such list."""
    return list(_most_weights(model)[1] or [])


def _most_weights(model: Any) -> tuple[str, Any]:
    """(full name, the ModuleList with most weights, or None)."""
    import torch

    best: tuple[int, str, Any] = (0, "", None)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module):
            weights = sum(weight.numel() for weight in module.parameters())
            if weights > best[0]:  # an outer list comes first, and holds no less than an inner one
                best = (weights, name, module)
    return best[1], best[2]


def sublayers(layer: Any) -> Sublayers:
    """Attention and feed-forward of one layer. Raises LabError if it has not both."""
    attention, feed_forward = None, []
    for child in layer.children():
        if not has_matrix(child):
            continue  # norms, activations, dropout
        if attention is None and takes_mask(child):
            attention = child
        elif not takes_mask(child):
            feed_forward.append(child)
    if attention is None or not feed_forward:
        raise LabError(
            f"A layer of this model ({type(layer).__name__}) has no attention and feed-forward "
            "part to work on.",
            "Choose a method that does not need them, such as lora.",
        )
    return Sublayers(attention, feed_forward[0], feed_forward[-1])


def has_matrix(module: Any) -> bool:
    return any(weight.dim() >= 2 for weight in module.parameters())


def takes_mask(module: Any) -> bool:
    """Whether its forward method asks for a mask, as every attention of transformers does."""
    return any("mask" in name for name in inspect.signature(module.forward).parameters)


def is_norm(module: Any) -> bool:
    """Found by class: the names differ by architecture."""
    return "norm" in type(module).__name__.lower()


def hidden_size(model: Any) -> int:
    """Width of what passes from layer to layer."""
    return int(model.config.get_text_config().hidden_size)


def parse_layers(text: str, count: int) -> list[int]:
    """Places of the layers that "all", "last 4", "first 4", "7" or "4-11" means, of `count`.

    Raises LabError for anything else and for layers that the model does not have.
    """
    words = text.strip().lower().replace(" - ", "-").split()
    if words == ["all"]:
        return list(range(count))
    if len(words) == 2 and words[0] in ("last", "first") and words[1].isascii():
        if words[1].isdecimal() and 1 <= int(words[1]) <= count:
            num_layers = int(words[1])
            return list(
                range(count - num_layers, count) if words[0] == "last" else range(num_layers)
            )
    elif len(words) == 1:
        ends = words[0].split("-")
        if len(ends) <= 2 and all(end.isascii() and end.isdecimal() for end in ends):
            low, high = int(ends[0]), int(ends[-1])
            if low <= high < count:
                return list(range(low, high + 1))
    raise LabError(
        f"'{text[:60]}' names no layers of this model.",
        f'Write "all", "last K", "first K", one number, or a range such as 0-{count - 1}; '
        f"it has the layers 0 to {count - 1}.",
    )
