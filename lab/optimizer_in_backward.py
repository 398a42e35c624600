"""The update inside the backward pass: each gradient is used and freed as soon as it is there.

The idea of LOMO (Lv et al. 2023, arXiv:2306.09782): never more than the gradients of one layer
exist. torch calls a parameter's hook once all of its uses have added their part, tied weights
included, so each update sees the whole gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class BackwardOptimizer(torch.optim.Optimizer):
    """An optimizer whose `step` has nothing left to do.

    `rule(group)` makes a torch optimizer over a group of one parameter; its state lives here, by
    parameter, as checkpoints expect it. The rate is read from the parameter's group at each
    update, so that schedules apply.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        rule: Callable[[dict[str, Any]], torch.optim.Optimizer],
    ) -> None:
        self._rule = rule
        self._norms: list[torch.Tensor] = []
        super().__init__(groups, {"lr": learning_rate})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group_index = len(self.param_groups) - 1
        group = self.param_groups[group_index]
        for weight in group["params"]:
            rule = self._rule(group | {"params": [weight]})
            weight.register_post_accumulate_grad_hook(self._updater(rule, group_index))

    def _updater(
        self, rule: torch.optim.Optimizer, group_index: int
    ) -> Callable[[torch.Tensor], None]:
        def update(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            norm = torch.linalg.vector_norm(weight.grad.detach(), dtype=torch.float32)
            self._norms.append(norm)
            # accelerate replaces both at its start: take them as they are now
            rule.state = self.state
            rule.param_groups[0]["lr"] = self.param_groups[group_index]["lr"]
            rule.step()
            weight.grad = None

        return update

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Everything happened in the backward pass."""

    def pop_grad_norm(self) -> torch.Tensor:
        """Norm of all gradients since the last call, a scalar."""
        norms, self._norms = self._norms, []
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
