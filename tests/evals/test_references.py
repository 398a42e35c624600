"""Scores and intervals against scikit-learn, scipy, and plain re-computations in other words."""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression

from lab.compare import preference
from lab.compare.paired import (
    half_interval,
    incomplete_beta,
    mean_interval,
    paired_difference,
    t_quantile,
)
from lab.compare.preference import GroupVerdict
from lab.compare.randomisation_test import macro_f1_test
from lab.compare.verdict import seed_difference
from lab.evals import scores
from lab.train import choice_probe, forgetting

WORDS = ("the", "a", "An", "river", "River,", "bank", "bank.", "of", "Seine", "42", "-", "théâtre")


def squad_normalised(text: str) -> str:
    """As the script that SQuAD's authors published for its version 1.1."""

    def without_articles(text: str) -> str:
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def without_punctuation(text: str) -> str:
        return "".join(letter for letter in text if letter not in set(string.punctuation))

    return " ".join(without_articles(without_punctuation(text.lower())).split())


def squad_f1(answer: str, reference: str) -> float:
    said, right = squad_normalised(answer).split(), squad_normalised(reference).split()
    common = Counter(said) & Counter(right)
    if not said or not right:
        return float(said == right)
    if not common.total():
        return 0.0
    precision, recall = common.total() / len(said), common.total() / len(right)
    return 2 * precision * recall / (precision + recall)


def test_exact_match_and_token_f1_are_those_of_squad() -> None:
    draw = random.Random(0)
    matches = 0
    for _ in range(500):
        answer, reference = (" ".join(draw.choices(WORDS, k=draw.randint(0, 4))) for _ in range(2))
        exact = float(squad_normalised(answer) == squad_normalised(reference))
        assert scores.exact_match(answer, reference) == exact, (answer, reference)
        assert scores.token_f1(answer, reference) == pytest.approx(squad_f1(answer, reference))
        matches += int(exact)
    assert 20 < matches < 480, "The draws hold both right and wrong answers."


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(seed: int) -> None:
    """Labels that are never predicted, never right, and answers without a label among them."""
    draw = random.Random(seed)
    right = [draw.choice(["refund", "delay", "damage", "never said"]) for _ in range(60)]
    said = [draw.choice(["refund", "delay", "damage", ""]) for _ in right]
    assert scores.accuracy(said, right) == sklearn_metrics.accuracy_score(right, said)
    expected = sklearn_metrics.f1_score(right, said, average="macro", zero_division=0)
    assert scores.macro_f1(said, right) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_the_randomisation_of_macro_f1_is_scipys(seed: int) -> None:
    """Scipy swaps the answers of eight rows in all 256 ways."""
    draw = np.random.default_rng(seed)
    right = draw.integers(3, size=8)
    first = np.where(draw.random(8) < 0.9, right, draw.integers(4, size=8))
    second = np.where(draw.random(8) < 0.2, right, draw.integers(4, size=8))

    def apart(ours: Any, theirs: Any) -> float:
        f1 = (
            sklearn_metrics.f1_score(right, labels, average="macro", zero_division=0)
            for labels in (ours, theirs)
        )
        return float(next(f1) - next(f1))

    exact = stats.permutation_test(
        (first, second), apart, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    names = [[f"label {each}" for each in row] for row in (first, second, right)]
    assert macro_f1_test(*names) == pytest.approx(exact.pvalue, abs=0.02)
    assert macro_f1_test(names[1], names[0], names[2]) == macro_f1_test(*names)
    assert macro_f1_test(names[0], names[0], names[2]) == 1.0


def test_centred_accuracy_is_the_mean_of_what_guessing_would_not_have_got() -> None:
    draw = random.Random(1)
    counts = [draw.choice([2, 3, 4, 5]) for _ in range(200)]
    right = [draw.random() < 0.6 for _ in counts]
    chance = np.mean(1 / np.array(counts))
    expected = (np.mean(right) - chance) / (1 - chance)
    assert choice_probe.centred(right, counts) == pytest.approx(expected, abs=1e-12)
    guesses = [draw.random() < 1 / count for count in counts * 100]
    assert choice_probe.centred(guesses, counts * 100) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("wins", "losses"), [(13, 4), (0, 10), (1, 0), (250, 251), (7, 7)])
def test_sign_test_and_wilsons_interval_are_those_of_scipy(wins: int, losses: int) -> None:
    exact = stats.binomtest(wins, wins + losses, 0.5)
    assert preference.sign_test(wins, losses) == pytest.approx(exact.pvalue, rel=1e-9)
    interval = exact.proportion_ci(0.95, method="wilson")
    expected = (interval.low, interval.high)
    assert preference.wilson(wins, wins + losses) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("freedom", [1, 1.7, 4, 9.3, 30, 2000])
def test_students_t_is_that_of_scipy(freedom: float) -> None:
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-8)
    for x in (1e-6, 0.02, 0.5, 0.97, 1 - 1e-9):
        expected = special.betainc(freedom / 2, 0.5, x)
        assert incomplete_beta(x, freedom / 2, 0.5) == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_intervals_are_those_of_scipys_t_tests() -> None:
    chance = np.random.default_rng(3)
    first, second = chance.normal(1.0, 2.0, 15), chance.normal(0.5, 1.0, 15)
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    difference = paired_difference(first, second)
    assert difference.mean - difference.half == pytest.approx(interval.low, rel=1e-8)
    assert difference.mean + difference.half == pytest.approx(interval.high, rel=1e-8)
    interval = stats.ttest_ind(first, second[:4], equal_var=False).confidence_interval(0.95)
    apart = seed_difference(first.tolist(), second[:4].tolist())
    assert apart is not None, "Both have several seeds."
    assert apart[0] - apart[1] == pytest.approx(interval.low, rel=1e-8), "Welch"
    interval = stats.ttest_1samp(first, 0.0).confidence_interval(0.95)
    mean, half = mean_interval(first)
    assert half is not None and mean + half == pytest.approx(interval.high, rel=1e-8)
    assert half_interval([(0.0, 4)]) == 0.0


def test_strengths_are_those_of_a_ridge_regression() -> None:
    """Bradley and Terry's model is a logistic regression on differences; its Gaussian prior of
    standard deviation s is scikit-learn's penalty with C = s²."""
    chance = np.random.default_rng(5)
    wins = chance.integers(0, 25, (4, 4)).astype(float)
    np.fill_diagonal(wins, 0)
    rows, targets, weights = [], [], []
    for first in range(4):
        for second in range(4):
            if first < second:
                place = np.zeros(4)
                place[first], place[second] = 1.0, -1.0
                rows += [place, place]
                targets += [1, 0]
                weights += [wins[first, second], wins[second, first]]
    model = LogisticRegression(C=1.5**2, fit_intercept=False, tol=1e-12, max_iter=10_000)
    model.fit(np.array(rows), targets, sample_weight=weights)
    assert preference.strengths(wins) == pytest.approx(model.coef_[0], abs=1e-5)


def drawn_again(values: Any, count: int, seed: int, statistic: Any) -> tuple[float, float]:
    """The 2.5 and 97.5 per cent points of a statistic over samples that are drawn one by one."""
    draw = random.Random(seed)
    drawn = sorted(statistic(draw.choices(values, k=len(values))) for _ in range(count))
    return drawn[round(0.025 * count)], drawn[round(0.975 * count) - 1]


def test_the_bootstrap_over_prompts_is_that_of_a_plain_loop() -> None:
    from tests.compare.test_preference import A, B, C, session_of

    verdicts = [B] * 14 + [A] * 6 + [C] * 8
    verdict = preference.outcome(session_of(verdicts, (A, B, C))).verdict
    assert isinstance(verdict, GroupVerdict)
    beats = verdict.beats_base[B]

    def probability(sample: list[str]) -> float:
        wins = np.zeros((3, 3))
        for place, name in enumerate((A, B, C)):
            wins[place] = sample.count(name)
        np.fill_diagonal(wins, 0)
        theta = preference.strengths(wins)
        return 1 / (1 + math.exp(theta[0] - theta[1]))

    expected = drawn_again(verdicts, 2000, 7, probability)
    assert beats.interval == pytest.approx(expected, abs=0.02)


def test_the_bootstrap_over_chats_is_scipys() -> None:
    chance = np.random.default_rng(8)
    tokens = chance.integers(5, 60, 24)
    sums = chance.normal(0.1, 0.3, 24) * tokens
    interval = stats.bootstrap(
        (sums, tokens), lambda s, t: s.sum(-1) / t.sum(-1), paired=True, vectorized=False,
        method="percentile", n_resamples=5000, random_state=0,
    ).confidence_interval  # fmt: skip
    half = forgetting.resampled_half(sums.tolist(), tokens.tolist())
    assert half == pytest.approx((interval.high - interval.low) / 2, rel=0.08)
