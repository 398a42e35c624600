"""Which layers run twice: counted while they run."""

from __future__ import annotations

import pytest
import torch

from lab.models.decoder_structure import decoder_layers
from lab.train.activation_checkpointing import checkpoint_activations
from lab.train.step import summed_loss
from tests.methods import tiny


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("first", [None, 0, 1, 2])
def test_only_the_first_layers_run_twice(first: int | None, is_frozen: bool) -> None:
    """Frozen but for a matrix in the last layer's feed-forward part, as under an adapter."""
    model = tiny.make_model("llama").train()
    layers = decoder_layers(model)[1]
    if is_frozen:
        model.requires_grad_(False)
        layers[0].mlp.down_proj.weight.requires_grad_(True)
    calls = [0, 0]
    for number, layer in enumerate(layers):

        def count(*_: object, number: int = number) -> None:
            calls[number] += 1

        layer.mlp.register_forward_pre_hook(count)
    checkpoint_activations(model, first)
    summed_loss(model, tiny.toy_batch(), precision="float32", loss="fused").backward()
    recomputed = len(layers) if first is None else first
    assert calls == [2 if number < recomputed else 1 for number in range(len(layers))]
    assert torch.any(layers[0].mlp.down_proj.weight.grad != 0)
