"""Figures as people read them."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from lab import formatting


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"), (0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (95, "1 min 35 s"),
        (119.6, "2 min 00 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"), (5400, "1 h 30 min"),
        (90_000, "25 h 00 min"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, words: str) -> None:
    assert formatting.duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"), (0, "0"), (999, "999"), (1000, "1.0 k"), (134_515_008, "134.5 M"),
        (8_030_261_248, "8.0 B"), (-2_500_000, "-2.5 M"),
    ],
)  # fmt: skip
def test_counts(value: float | None, words: str) -> None:
    assert formatting.count(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"), (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (23_118_622, "23.12 MB"),
        (10**9, "1.00 GB"), (2**30, "1.07 GB"), (-3 * 10**9, "-3.00 GB"), (2e12, "2000.00 GB"),
    ],
)  # fmt: skip
def test_sizes_are_in_powers_of_ten(value: float | None, words: str) -> None:
    assert formatting.size(value) == words


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (5, "just now"),
        (300, "5 min ago"),
        (3600, "60 min ago"),
        (7200, "2 h ago"),
        (86_400, "24 h ago"),
    ],
)
def test_moments(age: float, words: str) -> None:
    assert formatting.when(time.time() - age) == words
    moment = time.mktime((2025, 3, 9, 12, 0, 0, 0, 0, -1))
    assert formatting.when(moment) == "09 Mar 2025"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (4e12, "4e12 FLOPs"), (2.5e13, "2.5e13 FLOPs"), (1.4906e13, "1.49e13 FLOPs"),
        (9.999e15, "1e16 FLOPs"), (1200, "1,200 FLOPs"),
    ],
)  # fmt: skip
def test_floating_point_operations_are_short_and_without_a_plus(value: float, words: str) -> None:
    assert formatting.flops(value) == words


def test_budgets_say_their_unit() -> None:
    assert formatting.budget(20_000, "tokens") == "20,000 tokens"
    assert formatting.budget(2e13, "flops") == "2e13 FLOPs"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 rows"),
        (1, "1 row"),
        (2, "2 rows"),
        (1234, "1,234 rows"),
        (0.7, "1 row"),
        (1.4, "1 row"),
        (1.6, "2 rows"),
        (None, "– rows"),
        ("many", "– rows"),
        (True, "– rows"),
        (math.nan, "– rows"),
    ],
)
def test_what_is_counted_is_singular_only_once(value: Any, text: str) -> None:
    assert formatting.quantity(value, "row") == text


def test_a_plural_of_its_own_and_a_budget_of_one() -> None:
    assert formatting.quantity(1, "matrix", "matrices") == "1 matrix"
    assert formatting.quantity(2, "matrix", "matrices") == "2 matrices"
    assert formatting.budget(1, "steps") == "1 step"
