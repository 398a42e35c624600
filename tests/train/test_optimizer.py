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
    spec = RunSpec.from_json({"method": {"name": "lora", "loraplus_lr_ratio": 4.0}, "train": train})
    kind = getattr(torch, precision)
    method = methods.get("lora")
    model = method.apply(tiny.make_model("llama").to(kind), spec.method_config, Context(spec))
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in weights.values()} == {kind}
    rule: Any = make_optimizer(model, method, spec)
    rates = {".lora_A.": 0.5, ".lora_B.": 2.0}
    assert [group["lr"] for group in rule.param_groups] == [0.5, 2.0]
    for scale in (1.0, 0.25):
        for group, rate in zip(rule.param_groups, (0.5, 2.0), strict=True):
            group["lr"] = rate * scale
        before = {name: weight.detach().clone() for name, weight in weights.items()}
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


DECAYED = {  # of what each method trains, the parts of names that decay pulls towards zero
    "full": ("embed_tokens", "_proj.", "lm_head"),
    "lora": ("lora_A", "lora_B"),
    "adalora": ("lora_A", "lora_B"),
    "bottleneck": ("down.weight", "up.weight"),
    "ia3": (),
    "ln_tuning": (),
    "vera": (),
}


@pytest.mark.parametrize("name", DECAYED)
@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [("float32", "adamw"), ("bfloat16", "adamw"), ("float32", "adamw_in_backward")],
)
def test_decay_leaves_biases_norms_and_vectors_alone(
    name: str, precision: str, optimizer: str
) -> None:
    method = methods.get(name)
    if precision == "bfloat16" and method.saves_whole_model:
        return  # copies are adapters' own
    if optimizer.endswith("backward") and not method.can_update_in_backward:
        return
    options = {"use_dora": True} if name == "lora" else {}
    train = {
        "learning_rate": 0.5, "weight_decay": 0.5, "optimizer": optimizer, "max_grad_norm": 0.0,
        "adapter_precision": precision,
    }  # fmt: skip
    spec = RunSpec.from_json({"method": {"name": name, **options}, "train": train})
    base = tiny.make_model("llama").to(getattr(torch, precision))
    model = method.apply(base, spec.method_config, Context(spec))
    weights = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in weights.values():
            weight.fill_(1.0)
    rule = make_optimizer(model, method, spec)
    assert sum(len(group["params"]) for group in rule.param_groups) == len(weights)
    sum(weight.float().sum() * 0.0 for weight in weights.values()).backward()  # only decay moves
    rule.step()
    left = {key: weight.detach().float().mean().item() for key, weight in weights.items()}
    for key, mean in left.items():
        decays = any(part in key for part in DECAYED[name]) and "norm" not in key
        decays = decays and "magnitude" not in key
        assert mean == pytest.approx(0.75 if decays else 1.0), f"{name} {key}"


def test_decayed_parameters_are_those_of_transformers() -> None:
    """For what both know: a whole model with biases and norms."""
    from transformers import Trainer

    model = tiny.make_model("neox")
    spec = RunSpec.from_json(
        {"method": "full", "train": {"weight_decay": 0.1, "learning_rate": 0.1}}
    )
    rule = make_optimizer(model, methods.get("full"), spec)
    ids = {id(weight): name for name, weight in model.named_parameters()}
    decayed = {
        ids[id(weight)]
        for group in rule.param_groups
        if group["weight_decay"]
        for weight in group["params"]
    }
    assert decayed == set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
