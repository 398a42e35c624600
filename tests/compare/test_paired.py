"""Intervals of paired differences, against plain re-computations and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lab.compare.paired import (
    incomplete_beta,
    mean_interval,
    paired_difference,
    t_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062047), (2, 4.30265273), (5, 2.57058184), (21, 2.07961384), (1000, 1.96233908)],
)
def test_t_is_that_of_the_tables(freedom: float, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, rel=1e-7)


def test_the_incomplete_beta_function_is_the_integral() -> None:
    for a, b, x in ((0.5, 0.5, 0.3), (3.0, 0.5, 0.9), (10.5, 0.5, 0.2), (2.0, 5.0, 0.6)):
        t = np.linspace(0, 1, 2_000_001)[1:-1]
        density = t ** (a - 1) * (1 - t) ** (b - 1)
        expected = density[t <= x].sum() / density.sum()
        assert incomplete_beta(x, a, b) == pytest.approx(expected, abs=2e-3)
    assert incomplete_beta(0.0, 2, 3) == 0.0 and incomplete_beta(1.0, 2, 3) == 1.0


def test_without_weights_it_is_the_paired_t_test() -> None:
    first = np.array([1.0, 2.0, 4.0, 3.0, 2.5])
    second = np.array([1.5, 2.25, 4.0, 3.75, 2.0])
    difference = paired_difference(first, second)
    plain = first - second
    error = plain.std(ddof=1) / math.sqrt(5)
    assert difference.mean == pytest.approx(plain.mean())
    assert difference.half == pytest.approx(2.776445105 * error, rel=1e-6)
    assert (difference.lower, difference.rows, difference.seeds) == (3, 5, 1)
    assert not difference.is_shown


def test_a_weighted_mean_is_the_difference_of_the_evaluation_losses() -> None:
    tokens = np.array([3.0, 10.0, 7.0, 1.0])
    first, second = np.array([6.0, 21.0, 20.0, 4.0]), np.array([9.0, 24.0, 21.0, 3.0])
    difference = paired_difference(first, second, tokens)
    assert difference.mean == pytest.approx(first.sum() / 21 - second.sum() / 21)
    rest = first - second - difference.mean * tokens
    error = math.sqrt(4 / 3 * (rest**2).sum()) / 21
    assert difference.half == pytest.approx(t_quantile(3) * error)


def test_rows_of_one_document_count_once() -> None:
    """Each row three times: the interval stays that of the documents."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=12), rng.normal(size=12)
    alone = paired_difference(first, second)
    copies = [np.repeat(part, 3) for part in (first, second)]
    clusters = np.repeat(np.arange(12), 3)
    assert paired_difference(*copies, None, clusters).half == pytest.approx(alone.half)
    assert paired_difference(*copies).half < 0.65 * alone.half, "as if they were independent"


def test_seeds_add_their_variance() -> None:
    rows = np.array([1.0, 2.0, 3.0, 4.0])
    first = np.array([rows, rows + 0.2, rows - 0.2])
    second = np.array([rows + 1.0, rows + 1.4, rows + 0.6])
    difference = paired_difference(first, second)
    # the rows agree, so that all of it is between the seeds: Welch
    variances = np.array([0.2, 0.4]) ** 2 / 3
    freedom = variances.sum() ** 2 / (variances**2 / 2).sum()
    assert difference.mean == pytest.approx(-1.0) and difference.seeds == 3
    assert difference.half == pytest.approx(t_quantile(freedom) * math.sqrt(variances.sum()))
    paired = paired_difference(first, second, same_seeds=True)
    assert paired.half == pytest.approx(t_quantile(2) * 0.2 / math.sqrt(3)), "seed by seed"


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Twenty rows of different lengths, three seeds each: 95 % of 400 draws, give or take."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        tokens = rng.integers(3, 40, size=20).astype(float)
        hardness = rng.normal(3.0, 1.0, size=20)
        models = []
        for level, spread in ((0.0, 0.05), (0.1, 0.05)):
            effect = rng.normal(level, 0.3, size=20)
            seeds = rng.normal(0.0, spread, size=(3, 1)) + rng.normal(0.0, 0.05, size=(3, 20))
            models.append((hardness + effect + seeds) * tokens)
        difference = paired_difference(*models, tokens)
        held += abs(difference.mean + 0.1) <= difference.half
    assert 0.92 <= held / 400 <= 0.99


def test_too_little_to_tell_is_infinite() -> None:
    assert paired_difference(np.array([1.0]), np.array([2.0])).half == math.inf
    one_document = paired_difference(np.ones(4), np.zeros(4), None, np.zeros(4))
    assert one_document.half == math.inf and not one_document.is_shown
    assert mean_interval(np.array([2.0])) == (2.0, None)
    mean, half = mean_interval(np.array([2.0, 4.0]))
    assert mean == 3.0 and half == pytest.approx(12.7062047 * 1.0)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same rows"):
        paired_difference(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="as many"):
        paired_difference(np.ones((2, 3)), np.ones((3, 3)), same_seeds=True)
