"""The optimizer of a run, over the method's own groups."""

from __future__ import annotations

from typing import Any

import torch

from lab import optimizers
from lab.methods import Method
from lab.spec import RunSpec
from lab.train.copies import WithCopies


def make_optimizer(model: Any, method: Method, spec: RunSpec) -> torch.optim.Optimizer:
    """The optimizer of a run over the method's own groups; the memory estimate makes the same."""
    train = spec.train
    groups = method.param_groups(model, spec.method_config, float(train.learning_rate))
    rule = optimizers.get(train.optimizer)
    if optimizers.keeps_copies(method, train):
        return WithCopies(
            groups, float(train.learning_rate), lambda group: rule.build([group], train)
        )
    made: torch.optim.Optimizer = rule.build(groups, train)
    return made
