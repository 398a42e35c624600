"""Random models that hold memory, made from a config: what predictions are measured against."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lab import methods
from lab.forecast.trace.materialise import materialise
from lab.forecast.trace.meta_model import build, is_quantised, stored_bytes, with_layers
from lab.forecast.trace.trace_step import Batch, batch_of
from lab.models import catalog, weights
from lab.spec import RunSpec
from lab.train.step import summed_loss


def built(name: str) -> tuple[Any, Any]:
    value = {"model": "config:SmolLM2-135M", "method": name, "train": {"precision": "bfloat16"}}
    value["train"] |= {"adapter_precision": "bfloat16", "activation_checkpointing": "off"}
    spec = RunSpec.from_json(value)
    config = with_layers(weights.load_config(catalog.resolve_config(spec.model)), range(2))
    model, quantised, _ = build(config, spec, methods.get(name))
    return model, quantised


@pytest.mark.parametrize("name", ["qlora", "lora8bit"])
def test_a_quantised_base_is_made_in_its_bits_and_trains(name: str) -> None:
    model, quantised = built(name)
    predicted = sum(stored_bytes(weight, quantised) for weight in model.parameters())
    with torch.no_grad():
        materialise(model, "cpu", random=True)
    weights.disable_cpu_repacking(model)
    bytes_in_memory = 0
    for weight in model.parameters():
        bytes_in_memory += weight.numel() * weight.element_size()
        if is_quantised(weight) and name == "qlora":
            state = weight.quant_state
            parts = (state.absmax, state.state2.absmax)
            bytes_in_memory += sum(part.numel() * part.element_size() for part in parts)
        elif is_quantised(weight):
            bytes_in_memory += weight.SCB.numel() * weight.SCB.element_size()
    assert bytes_in_memory == pytest.approx(predicted, rel=1e-4)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight, "tied"
    loss = summed_loss(model.train(), batch_of(Batch(2, 16)), precision="bfloat16", loss="fused")
    loss.backward()
    own = [weight for weight in model.parameters() if weight.requires_grad]
    assert torch.isfinite(loss) and any(weight.grad.abs().sum() > 0 for weight in own)


def test_tokens_that_only_a_tokenizer_knows_are_taken_from_the_config() -> None:
    model, _ = built("trainable_tokens")
    (own,) = [weight for weight in model.parameters() if weight.requires_grad]
    assert own.shape == (2, 576), "the tokens that its config names"
    materialise(model, "cpu", random=True)
    assert model.get_output_embeddings().weight.device.type == "cpu"
