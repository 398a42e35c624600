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
    groups = parameter_groups(model, method, spec)
    rule = optimizers.get(train.optimizer)
    optimizer: torch.optim.Optimizer
    if optimizers.uses_master_weights(method, train):
        optimizer = MasterWeightOptimizer(
            groups, float(train.learning_rate), lambda group: rule.build([group], train)
        )
    else:
        optimizer = rule.build(groups, train)
    return optimizer


def parameter_groups(model: Any, method: Method, spec: RunSpec) -> list[dict[str, Any]]:
    """The method's groups, with those apart that no weight decay pulls towards zero.

    As in transformers, biases and the scales of norms are left alone, and so is whatever else is
    a vector: a factor of one channel, such as those of IA3 and VeRA, starts at one or has no scale
    that a smaller value would regularise.
    """
    groups = method.param_groups(model, spec.method_config, float(spec.train.learning_rate))
    if not spec.train.weight_decay:
        return groups
    vectors = {
        id(weight) for name, weight in model.named_parameters() if is_vector(name, weight, method)
    }
    split = []
    for group in groups:
        matrices = [weight for weight in group["params"] if id(weight) not in vectors]
        others = [weight for weight in group["params"] if id(weight) in vectors]
        split += [group | {"params": matrices}] if matrices else []
        split += [group | {"params": others, "weight_decay": 0.0}] if others else []
    return split


def is_vector(name: str, weight: torch.Tensor, method: Method) -> bool:
    """Whether a parameter has one dimension, some of which are stored as matrices of one row."""
    return weight.ndim < 2 or any(part in name for part in method.vectors)


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
    for group in parameter_groups(model, method, spec):
        weights = [weight for weight in group["params"] if id(weight) not in known]
        if not weights:
            continue
        peak = group["lr"]
        optimizer.add_param_group(
            group | {"params": weights, "lr": peak * multiplier, "initial_lr": peak}
        )
        added += len(weights)
    return added
