"""The training loop: sequences become micro-batches, micro-batches a step, steps a run.

`step` is the one training step of the lab: the worker, the conformance suite, the benches and the
memory trace all call it. `TrainingLoop` repeats it until the budget is used up. Device placement,
the backward pass, clipping and sums over processes are accelerate's; records, evaluation,
checkpoints and commands belong to the callbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from lab.methods import Method
from lab.optimizer_in_backward import BackwardOptimizer
from lab.spec_sections import TrainSpec
from lab.train import budget
from lab.train.optimizer import set_learning_rates
from lab.train.step import summed_loss, unwrapped
from lab.train.step_batches import Batch, StepBatches


@dataclass(frozen=True)
class StepConfig:
    """What a step does with its micro-batches; the same for all steps of a run.

    `penalty(model)` is a scalar tensor that is added to the mean loss of the step, or None;
    `on_optimizer_step(model, step)` is called after the update, while the gradients still exist.
    """

    precision: str
    loss: str  # "fused" or "plain"
    max_grad_norm: float = 1.0  # 0: gradients are not clipped
    penalty: Callable[[Any], torch.Tensor | None] = lambda model: None
    on_optimizer_step: Callable[[Any, int], None] = lambda model, step: None

    @classmethod
    def of(cls, method: Method, method_config: Any, train: TrainSpec, loss: str) -> StepConfig:
        """The step of a run with `method`. `loss`: what the architecture allows of the spec's."""
        return cls(
            train.precision,
            loss,
            train.max_grad_norm,
            penalty=lambda model: method.penalty(model, method_config),
            on_optimizer_step=lambda model, step: method.on_optimizer_step(
                model, method_config, step
            ),
        )


@dataclass(frozen=True)
class StepResult:
    """Both tensors stay on the device until they are read."""

    losses: torch.Tensor  # (micro-batches,) parts of the mean loss in nats, without the penalty
    grad_norm: torch.Tensor  # () of all gradients, before clipping


def step(
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    batches: Sequence[Batch],
    config: StepConfig,
    step_number: int,
    lr_multiplier: float = 1.0,
    end_phase: Callable[[str], object] = lambda phase: None,
) -> StepResult:
    """Optimizer step `number` (from 1) over this process's micro-batches of it.

    Each parameter group learns at `lr_multiplier` times its peak rate. The loss is the mean over
    the counted tokens of all micro-batches on all processes. `end_phase` is called with "forward",
    "backward" and "optimizer" when that phase ends.
    """
    bare_model, losses = unwrapped(model), []
    set_learning_rates(optimizer, lr_multiplier)
    # A tensor filled on the device: dividing by it copies nothing and does not synchronise. It is
    # the mean over processes, because DDP and FSDP average the gradients.
    loss_tokens = float(sum(batch["targets"].numel() for batch in batches))
    loss_tokens = accelerator.reduce(torch.full((), loss_tokens, device=accelerator.device), "mean")
    for index, batch in enumerate(batches, 1):
        with nullcontext() if index == len(batches) else accelerator.no_sync(model):
            total = summed_loss(model, batch, precision=config.precision, loss=config.loss)
            end_phase("forward")
            loss = total / loss_tokens
            losses.append(loss.detach())
            penalty = config.penalty(bare_model)
            accelerator.backward(loss if penalty is None else loss + penalty / len(batches))
            end_phase("backward")
    grad_norm = _clip(accelerator, bare_model, optimizer, config.max_grad_norm)
    optimizer.step()
    config.on_optimizer_step(bare_model, step_number)
    optimizer.zero_grad(set_to_none=True)
    end_phase("optimizer")
    return StepResult(accelerator.reduce(torch.stack(losses), "mean"), grad_norm)


def _clip(
    accelerator: Accelerator, model: Any, optimizer: Any, max_grad_norm: float
) -> torch.Tensor:
    """Clip the gradients to `max_grad_norm` (0: leave them); their norm before that, a scalar."""
    bare_optimizer = getattr(optimizer, "optimizer", optimizer)
    if isinstance(bare_optimizer, BackwardOptimizer):
        return bare_optimizer.pop_grad_norm()  # the gradients have been used and freed
    # in the model's order: another order of the groups would round the norm differently
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    norm: torch.Tensor = accelerator.clip_grad_norm_(weights, max_grad_norm or float("inf"))
    return norm


class Callback(Protocol):
    """Is called by the loop. Ends it by setting `loop.should_stop`."""

    def on_train_begin(self, loop: TrainingLoop) -> None: ...
    def on_step_end(self, loop: TrainingLoop, result: StepResult) -> None: ...
    def on_train_end(self, loop: TrainingLoop) -> None: ...


@dataclass
class TrainingLoop:
    """Steps until the budget is used up or a callback stops it. `model` and `optimizer` are the
    bare ones; what accelerate wraps around them exists in `run` only."""

    accelerator: Accelerator
    model: Any
    optimizer: torch.optim.Optimizer
    train: TrainSpec
    config: StepConfig
    batches: StepBatches
    callbacks: list[Callback] = field(default_factory=list)
    end_phase: Callable[[str], object] = lambda phase: None
    should_stop: bool = False

    def run(self) -> None:
        plan, used = self.batches.plan, self.batches.used
        self.accelerator.free_memory()
        model, optimizer = self.accelerator.prepare(self.model, self.optimizer)
        # Dropout draws from here on. A resumed run puts its random state back in on_train_begin,
        # and nothing may draw between that and the first forward pass.
        set_seed(self.train.seed)
        self.model.train()
        for callback in self.callbacks:
            callback.on_train_begin(self)
        while used.step < plan.steps and not self.should_stop:
            step_number = used.step + 1
            multiplier = budget.lr_multiplier(self.train, plan, used)
            micro_batches = self.batches.sequences(step_number)
            tensors = self.batches.tensors(micro_batches, self.accelerator)
            result = step(
                self.accelerator,
                model,
                optimizer,
                tensors,
                self.config,
                step_number,
                multiplier,
                self.end_phase,
            )
            self.batches.count(step_number, micro_batches)
            for callback in self.callbacks:
                callback.on_step_end(self, result)
        for callback in self.callbacks:
            callback.on_train_end(self)
