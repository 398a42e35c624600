"""Budgets become steps; the learning rate follows the tightest budget."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from lab.data.batches import TokenSequence, TrainingOrder
from lab.spec_sections import TrainSpec
from lab.train import budget
from lab.train.budget import (
    UNLIMITED_STEPS,
    BudgetUsed,
    TrainingTimer,
    lr_multiplier,
    rate,
    training_budget,
)
from lab.train.flops import FlopCosts

ROWS = [TokenSequence([1] * 10, [-100] + [1] * 9, (10,)) for _ in range(9)]
COSTS = FlopCosts(per_token=2.0, per_loss_token=0.0, per_token_pair=0.0)


def planned(**settings: object):  # type: ignore[no-untyped-def]
    return training_budget(TrainSpec(batch_size=2, **settings), TrainingOrder(ROWS, 0), COSTS)  # type: ignore[arg-type]


def test_epochs_count_where_no_budget_is_set() -> None:
    assert (planned().steps, planned().rows) == (5, 9), "the last batch is smaller"
    assert planned(epochs=2.0).steps == 9
    assert planned(epochs=0.5).rows == 5


def test_the_tightest_budget_ends_the_run() -> None:
    assert planned(max_steps=7).steps == 7
    assert planned(max_tokens=100).steps == 5
    assert planned(max_tokens=101).steps == 6
    assert planned(max_flops=200.0).steps == 5
    assert planned(max_steps=3, max_tokens=100).steps == 3
    assert planned(max_seconds=5.0).steps == UNLIMITED_STEPS


def test_the_fraction_follows_the_tightest() -> None:
    plan = planned(max_steps=10, max_seconds=100.0)
    assert plan.fraction(BudgetUsed(step=5, seconds=10)) == 0.5
    assert plan.fraction(BudgetUsed(step=5, seconds=90)) == 0.9
    assert plan.fraction(BudgetUsed(step=50)) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_then_falls_and_is_never_zero(schedule: str) -> None:
    train = TrainSpec(lr_scheduler_type=schedule, warmup_ratio=0.1)
    rates = [rate(train, step / 100, 1 / 100) for step in range(100)]
    assert all(value > 0 for value in rates)
    assert max(rates) <= 1.0 and rates.index(max(rates)) in range(9, 12)
    assert rates[:10] == sorted(rates[:10]), "it rises in the warm-up"
    falling = rates[11:]
    assert falling == sorted(falling, reverse=True)
    assert rates[-1] < 0.01 or schedule == "constant"


def test_a_budget_of_seconds_takes_each_step_for_a_five_hundredth() -> None:
    train = TrainSpec(warmup_ratio=0.1, max_seconds=100.0)
    plan = planned(max_seconds=100.0)
    assert lr_multiplier(train, plan, BudgetUsed()) == pytest.approx((0.5 / 500) / 0.1)
    used = BudgetUsed(step=9, seconds=5.0)
    assert lr_multiplier(train, plan, used) == pytest.approx((0.05 + 0.5 / 500) / 0.1)
    ten = planned(max_steps=10)
    assert lr_multiplier(TrainSpec(warmup_ratio=0.1), ten, BudgetUsed()) == pytest.approx(0.5)


def test_the_timer_counts_what_lies_between_start_and_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    used = BudgetUsed(seconds=5.0)
    timer = TrainingTimer(used)
    timer.start()
    now[0] = 103.0
    assert timer.stop() == 3.0 and used.seconds == 8.0, "earlier attempts count, too"
    now[0] = 110.0
    assert timer.stop() == 0.0 and used.seconds == 8.0, "it has not been started since"


def test_no_warm_up_starts_at_the_top() -> None:
    assert rate(TrainSpec(warmup_ratio=0.0, lr_scheduler_type="constant"), 0.0, 0.1) == 1.0


def test_the_cosine_is_the_one_of_torch() -> None:
    """CosineAnnealingLR over twice as many steps is in the middle of each of ours at its odd
    ones."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    expected = []
    for step in range(40):
        if step % 2:
            expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    train = TrainSpec(lr_scheduler_type="cosine", warmup_ratio=0.0)
    rates = [rate(train, step / 20, 1 / 20) for step in range(20)]
    assert rates == pytest.approx(expected, abs=1e-9), "the rate of each step, value by value"


def test_the_warm_up_is_a_straight_line_to_the_peak() -> None:
    for schedule in ("cosine", "linear", "constant"):
        train = TrainSpec(lr_scheduler_type=schedule, warmup_ratio=0.5)
        rates = [rate(train, step / 10, 1 / 10) for step in range(5)]
        assert rates == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9]), schedule
        assert rate(train, 0.5, 0.0) == pytest.approx(1.0), "it falls from the peak, not below it"


def test_what_is_left_after_the_warm_up_falls_to_zero() -> None:
    linear = TrainSpec(lr_scheduler_type="linear", warmup_ratio=0.2)
    assert [rate(linear, place / 10, 0.0) for place in (2, 4, 6, 8)] == pytest.approx(
        [1.0, 0.75, 0.5, 0.25]
    )
    cosine = TrainSpec(lr_scheduler_type="cosine", warmup_ratio=0.2)
    assert [rate(cosine, place / 10, 0.0) for place in (2, 4, 6, 8)] == pytest.approx(
        [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]
    ), "a half cosine over the last 80 percent"
    constant = TrainSpec(lr_scheduler_type="constant", warmup_ratio=0.2)
    assert {rate(constant, place / 10, 0.0) for place in (2, 4, 6, 8)} == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_budget_that_is_overrun_leaves_no_negative_or_rising_rate(schedule: str) -> None:
    train = TrainSpec(lr_scheduler_type=schedule, warmup_ratio=0.1)
    assert rate(train, 1.0, 0.1) == pytest.approx(0.0, abs=1e-12)
    assert rate(train, 1.5, 0.1) == pytest.approx(0.0, abs=1e-12)


def test_accumulated_batches_make_one_step() -> None:
    epochs = planned(gradient_accumulation_steps=2)  # nine rows, four a step
    assert (epochs.steps, epochs.rows) == (3, 9)
    assert epochs.fraction(BudgetUsed(step=3)) == 1.0 and epochs.fraction(BudgetUsed(step=2)) < 1.0
    assert planned(gradient_accumulation_steps=2, max_steps=5).rows == 20
    assert planned(gradient_accumulation_steps=2, max_tokens=100).steps == 3, "forty tokens a step"
    assert planned(gradient_accumulation_steps=2, max_flops=161.0).steps == 3, (
        "eighty operations a step"
    )


def test_a_run_has_at_least_one_row_and_stays_within_its_budget() -> None:
    assert (planned(epochs=0.01).steps, planned(epochs=0.01).rows) == (1, 1)
    assert planned(epochs=1.2).rows == 11, "a part of a row is a row"
    over = planned(max_tokens=100)
    assert over.fraction(BudgetUsed(tokens=250)) == 1.0, "a budget cannot be used more than whole"
    assert over.fraction(BudgetUsed(tokens=25, step=99)) == 0.25, "only set budgets count"
