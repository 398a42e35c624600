"""Budgets become steps; the learning rate follows the tightest budget."""

from __future__ import annotations

import pytest

from lab.data.batches import Row, Stream
from lab.spec_sections import TrainSpec
from lab.train.flops import Flops
from lab.train.schedule import OPEN_END, Used, plan, rate

ROWS = [Row([1] * 10, [-100] + [1] * 9, (10,)) for _ in range(9)]
COSTS = Flops(per_token=2.0, per_loss_token=0.0, per_token_pair=0.0)


def planned(**settings: object):  # type: ignore[no-untyped-def]
    return plan(TrainSpec(batch_size=2, **settings), Stream(ROWS, 0), COSTS)  # type: ignore[arg-type]


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
    assert planned(max_seconds=5.0).steps == OPEN_END


def test_the_fraction_follows_the_tightest() -> None:
    made = planned(max_steps=10, max_seconds=100.0)
    assert made.fraction(Used(step=5, seconds=10)) == 0.5
    assert made.fraction(Used(step=5, seconds=90)) == 0.9
    assert made.fraction(Used(step=50)) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_then_falls_and_is_never_zero(schedule: str) -> None:
    train = TrainSpec(schedule=schedule, warmup=0.1)
    rates = [rate(train, step / 100, 1 / 100) for step in range(100)]
    assert all(value > 0 for value in rates)
    assert max(rates) <= 1.0 and rates.index(max(rates)) in range(9, 12)
    assert rates[:10] == sorted(rates[:10]), "it rises in the warm-up"
    falling = rates[11:]
    assert falling == sorted(falling, reverse=True)
    assert rates[-1] < 0.01 or schedule == "constant"


def test_no_warm_up_starts_at_the_top() -> None:
    assert rate(TrainSpec(warmup=0.0, schedule="constant"), 0.0, 0.1) == 1.0
