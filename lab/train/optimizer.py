"""The optimizer of a run, over the method's own groups."""

from __future__ import annotations

from typing import Any

import torch

from lab import optimizers
from lab.methods import Method
from lab.spec import RunSpec
from lab.train.master_weights import MasterWeightOptimizer


def make_optimizer(model: Any, method: Method, spec: RunSpec) -> torch.optim.Optimizer:
    """The optimizer of a run over the method's own groups; the memory estimate makes the same."""
    train = spec.train
    groups = method.param_groups(model, spec.method_config, float(train.learning_rate))
    rule = optimizers.get(train.optimizer)
    optimizer: torch.optim.Optimizer
    if optimizers.uses_master_weights(method, train):
        optimizer = MasterWeightOptimizer(
            groups, float(train.learning_rate), lambda group: rule.build([group], train)
        )
    else:
        optimizer = rule.build(groups, train)
    return optimizer


def set_learning_rates(optimizer: Any, multiplier: float) -> None:
    """Give each group `multiplier` times its peak rate, which torch calls `initial_lr`: the rate
    that the group was made with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * multiplier


def add_new_parameters(
    optimizer: torch.optim.Optimizer, model: Any, method: Method, spec: RunSpec, multiplier: float
) -> int:
    """Add parameters that have become trainable, at `multiplier` times their group's peak rate.

    Returns how many tensors were added.
    """
    known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    added = 0
    for group in method.param_groups(model, spec.method_config, float(spec.train.learning_rate)):
        weights = [weight for weight in group["params"] if id(weight) not in known]
        if not weights:
            continue
        peak = group["lr"]
        optimizer.add_param_group(
            group | {"params": weights, "lr": peak * multiplier, "initial_lr": peak}
        )
        added += len(weights)
    return added
