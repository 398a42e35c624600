"""Activation checkpointing: layers that recompute in the backward pass what they do not keep."""

from __future__ import annotations

from typing import Any

from lab.models.decoder_structure import decoder_layers


def checkpoint_activations(model: Any, first: int | None = None) -> None:
    """Recompute activations in the backward pass, of the `first` layers or of all.

    The last layers' activations are gone before the gradients have grown: theirs may stay.
    """
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    for layer in decoder_layers(model)[1][first:] if first is not None else []:
        layer.gradient_checkpointing = False
    # without it, nothing in front of frozen layers requires a gradient
    model.enable_input_require_grads()
