"""Budgets and the learning rate that follows them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from lab.data.batches import TrainingOrder
from lab.spec_sections import TrainSpec
from lab.train.flops import FlopCosts

UNLIMITED_STEPS = 100_000_000  # steps, where only a wall clock ends the run


@dataclass
class BudgetUsed:
    """What a run has used so far, over all attempts."""

    step: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0

    def amounts(self) -> dict[str, float]:
        """What a record of an evaluation says of it."""
        names = ("step", "tokens", "seconds", "flops")
        return {name: getattr(self, name) for name in names}


class TrainingTimer:
    """Seconds of training: runs between `start` and `stop`, over all attempts."""

    def __init__(self, used: BudgetUsed) -> None:
        self.used = used
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> float:
        """Seconds since the start, added to the run's."""
        passed = time.perf_counter() - (self._since or time.perf_counter())
        self._since = None
        self.used.seconds += passed
        return passed


@dataclass(frozen=True)
class TrainingBudget:
    """How far the run goes: `steps` optimizer steps over `rows` rows, unless seconds end it."""

    steps: int
    rows: int
    limits: dict[str, float]

    @property
    def is_time_limited(self) -> bool:
        return self.steps >= UNLIMITED_STEPS

    def fraction(self, used: BudgetUsed) -> float:
        """Share of the tightest budget that is used, 0 to 1."""
        shares = [getattr(used, key) / limit for key, limit in self.limits.items()]
        return min(1.0, max(shares, default=0.0))


def training_budget(train: TrainSpec, stream: TrainingOrder, flops: FlopCosts) -> TrainingBudget:
    """The budgets of `train` as steps. Tokens and FLOPs are known row by row, so only seconds
    leave the end open."""
    per_step = train.batch_size * train.gradient_accumulation_steps
    limits = {
        "step": train.max_steps,
        "tokens": train.max_tokens,
        "seconds": train.max_seconds,
        "flops": train.max_flops,
    }
    set_limits = {key: float(limit) for key, limit in limits.items() if limit is not None}
    if not set_limits:
        rows = max(1, math.ceil(train.epochs * len(stream.rows)))
        steps = math.ceil(rows / per_step)
        return TrainingBudget(steps, rows, {"step": float(steps)})
    steps = train.max_steps or UNLIMITED_STEPS
    if train.max_tokens is not None or train.max_flops is not None:
        steps = min(steps, _steps_within(train, stream, flops, steps))
    return TrainingBudget(steps, steps * per_step, set_limits)


def _steps_within(train: TrainSpec, stream: TrainingOrder, flops: FlopCosts, most: int) -> int:
    """The first step at which the token or FLOP budget is used up."""
    per_step = train.batch_size * train.gradient_accumulation_steps
    tokens, operations = 0.0, 0.0
    for step in range(most):
        for index in range(step * per_step, (step + 1) * per_step):
            row = stream[index]
            tokens += row.tokens
            operations += flops.of(row)
        if tokens >= (train.max_tokens or math.inf) or operations >= (train.max_flops or math.inf):
            return step + 1
    return most


def lr_multiplier(train: TrainSpec, plan: TrainingBudget, used: BudgetUsed) -> float:
    """Multiplier of the peak learning rates for the step that follows what is `used`."""
    # a budget of seconds does not know its steps: take each for a five-hundredth of it
    share = 1.0 / (500 if plan.is_time_limited else plan.steps)
    return rate(train, plan.fraction(used), share)


def rate(train: TrainSpec, fraction: float, share: float) -> float:
    """Multiplier of the peak learning rate. `fraction` of the budget is used before the step,
    `share` is the step's own part: the middle of the step counts, so none has the rate zero."""
    progress = min(1.0, fraction + share / 2)
    if progress < train.warmup_ratio:
        return progress / train.warmup_ratio
    if train.lr_scheduler_type == "constant":
        return 1.0
    left = (1.0 - progress) / (1.0 - train.warmup_ratio)
    if train.lr_scheduler_type == "linear":
        return left
    return 0.5 * (1.0 - math.cos(math.pi * left))
