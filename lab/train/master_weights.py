"""Float32 copies of 16-bit adapters inside the optimizer: small updates are not rounded away.

bfloat16 keeps 8 bits of a number, so that an update below 1/256 of a weight changes nothing. The
update is made on a float32 copy, and the weight is its rounding (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.1). Adapters are small, so the copies cost next to nothing, and no
layer has to cast on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MASTER_KEY = "copy"  # in the state of a weight, beside the moments of the rule


class MasterWeightOptimizer(torch.optim.Optimizer):
    """`rule(group)` makes the torch optimizer that updates the copies of a group.

    State lives here, by the weight itself, as checkpoints expect it. What other code writes
    into a weight between two steps (pruning does) is taken over.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        rule: Callable[[dict[str, Any]], torch.optim.Optimizer],
    ) -> None:
        self._rule = rule
        self._rules: list[tuple[torch.optim.Optimizer, list[torch.Tensor]]] = []
        self._versions: dict[torch.Tensor, int] = {}  # of the weights, as they were left
        self._states: dict[torch.Tensor, dict[str, Any]] = {}  # as they were left here
        super().__init__(groups, {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group_index, group in enumerate(self.param_groups):
            if group_index == len(self._rules):
                copies = [_copy(weight) for weight in group["params"]]
                self._versions |= {weight: weight._version for weight in group["params"]}
                self._rules.append((self._rule(group | {"params": copies}), copies))
            rule, copies = self._rules[group_index]
            rule.param_groups[0]["lr"] = group["lr"]
            pairs = []
            for index, (weight, copy) in enumerate(zip(group["params"], copies, strict=True)):
                if weight.grad is None:
                    continue
                pairs.append((weight, copy))
                self._sync_master(rule, index, weight, copy)
                copy.grad = weight.grad.to(copy.dtype)
            rule.step()
            apart = [(weight, copy) for weight, copy in pairs if weight is not copy]
            for _, copy in apart:
                copy.grad = None
            if apart:
                torch._foreach_copy_([weight for weight, _ in apart], [copy for _, copy in apart])
            for weight, copy in pairs:
                state = dict(rule.state[copy])
                if weight is not copy:
                    state[MASTER_KEY] = copy.data
                self.state[weight] = self._states[weight] = state
                self._versions[weight] = weight._version

    def _sync_master(
        self, rule: Any, group_index: int, weight: torch.Tensor, copy: torch.Tensor
    ) -> None:
        """The state that a checkpoint has put back, and what was written into the weight."""
        state = self.state.get(weight)
        is_restored = bool(state) and state is not self._states.get(weight)
        if is_restored:
            if MASTER_KEY in state:
                copy.data = state[MASTER_KEY]
            self._give_state(rule, group_index, copy, state, weight.dtype)
        if weight is not copy and (is_restored or weight._version != self._versions[weight]):
            copy.copy_(torch.where(copy.to(weight.dtype) == weight, copy, weight.to(copy.dtype)))

    @staticmethod
    def _give_state(
        rule: Any,
        group_index: int,
        copy: torch.Tensor,
        restored: dict[str, Any],
        narrow: torch.dtype,
    ) -> None:
        state = {key: value for key, value in restored.items() if key != MASTER_KEY}
        for key, value in state.items():
            # of a checkpoint that was written before there were copies
            if isinstance(value, torch.Tensor) and value.dtype == narrow != copy.dtype:
                state[key] = value.to(copy.dtype)
        if getattr(rule, "is_paged", False) and copy.is_cuda:
            # paged moments lie in memory that only the rule itself can ask for
            rule.init_state(rule.param_groups[0], copy, 0, group_index)
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    rule.state[copy][key].copy_(value)
                else:
                    rule.state[copy][key] = value
        else:
            rule.state[copy] = state


def _copy(weight: torch.Tensor) -> torch.Tensor:
    """A float32 copy to update in place of a 16-bit weight; any other is updated itself."""
    if weight.element_size() >= 4:
        return weight
    return torch.nn.Parameter(weight.detach().float())
