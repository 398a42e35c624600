"""Our count against torch's own counter, with attention's formula registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from lab import methods
from lab.data.batches import collate, single_rows
from lab.data.template import Tokens
from lab.methods import Context
from lab.spec import RunSpec
from lab.train import flops
from lab.train.step import summed_loss

# On a CPU, torch counts nothing for this operator.
CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *args, **kwargs: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *args, **kwargs: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@pytest.mark.parametrize("name", ["full", "lora"])
def test_counts_agree_with_torch(name: str, tiny_model: Any) -> None:
    from transformers import AutoModelForCausalLM

    spec = RunSpec.from_json({"method": {"name": name}})
    method = methods.get(name)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = method.apply(model, spec.method_config, Context(spec))
    ids = torch.arange(128).tolist()
    rows = single_rows([Tokens(ids, [-100, *ids[1:]])] * 2)
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with counter:
        summed_loss(model, collate(rows, 0), precision="float32", loss="fused").backward()
    ours = flops.count(model, "fused").of_rows(rows)
    # torch's backward recomputes the scores of attention, ours counts model FLOPs; the gradient
    # of the first layer's input is not needed under LoRA
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05)
