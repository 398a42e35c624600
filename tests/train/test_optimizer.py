"""Each group of a method learns at its own rate, whatever the update rule and its wrapping."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lab import methods
from lab.methods import Context
from lab.spec import RunSpec
from lab.train.optimizer import make_optimizer
from tests.methods import tiny


@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [("float32", "sgd"), ("bfloat16", "sgd"), ("float32", "sgd_in_backward")],
)
def test_every_group_moves_by_its_rate(precision: str, optimizer: str) -> None:
    """LoRA+: B learns four times as fast as A. A gradient of ones moves each weight by its rate,
    and a rate that the schedule has lowered by that."""
    train = {"learning_rate": 0.5, "optimizer": optimizer, "adapter_precision": precision}
    spec = RunSpec.from_json({"method": {"name": "lora", "lr_ratio": 4.0}, "train": train})
    kind = getattr(torch, precision)
    method = methods.get("lora")
    model = method.apply(tiny.make_model("llama").to(kind), spec.method_config, Context(spec))
    weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert {one.dtype for one in weights.values()} == {kind}
    rule: Any = make_optimizer(model, method, spec)
    rates = {".lora_A.": 0.5, ".lora_B.": 2.0}
    assert [group["lr"] for group in rule.param_groups] == [0.5, 2.0]
    for scale in (1.0, 0.25):
        for group, rate in zip(rule.param_groups, (0.5, 2.0), strict=True):
            group["lr"] = rate * scale
        before = {name: one.detach().clone() for name, one in weights.items()}
        sum(weight.float().sum() for weight in weights.values()).backward()
        if optimizer == "sgd_in_backward":
            freed = [weight.grad is None for weight in weights.values()]
            assert all(freed), "no gradient outlives its update"
        rule.step()
        rule.zero_grad()
        for name, weight in weights.items():
            (rate,) = [rate for part, rate in rates.items() if part in name]
            moved = (before[name] - weight).float()
            expected = torch.full_like(moved, rate * scale)
            assert torch.allclose(moved, expected, rtol=2e-2, atol=2e-2), name
    if optimizer == "sgd_in_backward":
        count = sum(weight.numel() for weight in weights.values())
        both = rule.pop_grad_norm()  # of two backward passes
        assert float(both) == pytest.approx((2 * count) ** 0.5, rel=1e-4)
        assert float(rule.pop_grad_norm()) == 0.0, "taken once"
    else:
        held = any("copy" in state for state in rule.state.values())
        assert held == (precision == "bfloat16"), "16-bit adapters have float32 copies"
