"""Claims that several figures of a race decide: two tests of one claim, a difference of
differences, and the ratio of two best learning rates."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest

from lab.compare.claim_verdicts import claim_verdicts, learning_rate, verdict_of_test
from lab.compare.finishers import Finisher, finishers
from lab.compare.race_file import ClaimTest
from lab.compare.verdict import figure_difference
from lab.paths import RunDir
from tests.compare.recorded import TOKENS, record
from tests.compare.test_race_outcome import race_of

NUMBERS = count()
NOISE = np.array([0.2, -0.2] * 5) / TOKENS  # nothing in the mean over all rows


def racing_of(
    contestants: dict[str, tuple[float, ...]], *, rates: dict[str, float] | None = None
) -> list[Finisher]:
    """Two seeds of each contestant with these evaluation losses, the second 0.01 above."""
    runs: list[tuple[RunDir, str, int, str]] = []
    for rank, (name, losses) in enumerate(contestants.items(), 1):
        for seed in (0, 1):
            run = record(
                f"{next(NUMBERS):04}",
                method={"name": "lora", "rank": rank},
                losses=tuple(loss + 0.01 * seed for loss in losses),
                noise=NOISE * rank,
                seed=seed,
                **({"learning_rate": rates[name]} if rates else {}),
            )
            runs.append((run, name, seed, "default"))
    return finishers(race_of(*runs))


EARLY = ClaimTest("D4", "early_loss", "LoRA", "Full", "lower")
LATE = ClaimTest("D4", "loss", "LoRA", "Full", "higher")


@pytest.mark.parametrize(
    ("lora", "full", "verdict", "value"),
    [
        ((2.5, 2.6, 2.5), (3.0, 2.5, 2.0), "confirmed", -0.5),
        ((3.0, 2.6, 2.5), (2.5, 2.5, 2.0), "off", 0.5),  # full leads from the start
        ((2.5, 2.6, 1.5), (3.0, 2.5, 2.0), "off", -0.5),  # and here never
        ((2.5, 2.6, 1.5), (2.5, 2.5, 2.0), "off", -0.5),
        ((2.5, 2.6, 2.0), (3.0, 2.5, 2.0), "open", 0.0),
        ((2.5, 2.6, 2.5), (2.5, 2.5, 2.0), "open", 0.0),
    ],
)
def test_a_claim_with_two_tests_is_confirmed_where_both_are(
    lora: tuple[float, ...], full: tuple[float, ...], verdict: str, value: float
) -> None:
    ruling = claim_verdicts([EARLY, LATE], racing_of({"LoRA": lora, "Full": full}))["D4"]
    assert ruling.verdict == verdict, ruling.sentence
    assert ruling.value == pytest.approx(value, abs=1e-9), "of the test that decides"
    assert f"Evaluation loss at the first evaluation of LoRA: {lora[0] + 0.005:.3g}" in (
        ruling.sentence
    )
    assert f"Evaluation loss of LoRA: {lora[-1] + 0.005:.3g} against" in ruling.sentence


def test_an_early_loss_is_the_first_of_several_and_paired_by_its_rows() -> None:
    racing = racing_of({"LoRA": (2.4, 2.1), "Full": (3.0, 2.5)})
    lora, full = (each.contestant for each in racing)
    assert lora.first.early_loss == pytest.approx(2.4)
    apart, half = figure_difference(lora, full, "early_loss")
    assert apart == pytest.approx(-0.6), "and -0.4 at the last evaluation"
    assert 0 < half < 0.1, "ten rows tell much more than two seeds"
    later = racing_of({"a": (2.4, 2.1), "b": (3.0, 2.6, 2.5)})  # thirds against halves of 1,000
    ruling = verdict_of_test(replace(EARLY, of="a", than="b"), later)
    assert ruling.verdict == "open" and "after 500 and 333 tokens" in ruling.sentence
    once = racing_of({"a": (2.4,), "b": (3.0,)})
    ruling = verdict_of_test(replace(EARLY, of="a", than="b"), once)
    assert ruling.verdict == "open" and "did not measure" in ruling.sentence, ruling.sentence


GAP = ClaimTest(
    "E4", "loss", "LoRA, large", "LoRA", "higher", less=("Full, large", "Full"), sentence="s"
)


@pytest.mark.parametrize(
    ("lora_large", "full_large", "verdict", "value"),
    [(2.9, 2.2, "confirmed", 0.3), (2.6, 2.5, "off", -0.3), (2.7, 2.3, "open", 0.0)],
)
def test_a_difference_of_differences_decides(
    lora_large: float, full_large: float, verdict: str, value: float
) -> None:
    racing = racing_of(
        {"LoRA": (2.5,), "LoRA, large": (lora_large,), "Full": (2.1,), "Full, large": (full_large,)}
    )
    ruling = verdict_of_test(GAP, racing)
    assert ruling.verdict == verdict, ruling.sentence
    assert ruling.value == pytest.approx(value, abs=1e-9)
    gaps = f"+{lora_large - 2.5:.1g} from LoRA to LoRA, large against "
    assert gaps + f"+{full_large - 2.1:.1g} from Full to Full, large" in ruling.sentence
    halves = [
        figure_difference(racing[large].contestant, racing[small].contestant, "loss")[1]
        for large, small in ((1, 0), (3, 2))
    ]
    assert f"± {np.hypot(*halves):.2g}" in ruling.sentence, "both intervals count"
    ruling = verdict_of_test(GAP, racing[:3])
    assert ruling.verdict == "open" and "No run of Full, large" in ruling.sentence


def test_the_best_rates_of_two_are_held_against_each_other() -> None:
    rates = {"Full at 6e-5": 6e-5, "Full at 2e-4": 2e-4, "LoRA at 6e-4": 6e-4, "LoRA at 2e-3": 2e-3}
    test = ClaimTest("E1", "learning_rate", "LoRA", "Full", ratio=(10.0, 15.0), sentence="s")

    def ruling(*losses: float) -> tuple[str, float | None]:
        racing = racing_of(dict(zip(rates, ((loss,) for loss in losses), strict=True)), rates=rates)
        verdict = verdict_of_test(test, racing)
        assert "claimed: 10 to 15 times" in verdict.sentence
        return verdict.verdict, verdict.value

    assert ruling(2.0, 2.5, 2.1, 2.4) == ("confirmed", 10.0)
    assert ruling(2.5, 2.0, 2.1, 2.4) == ("off", 3.0)
    assert ruling(2.0, 2.5, 2.4, 2.1) == ("off", 33.3)
    tried = rates | {"LoRA at 6e-3": 6e-3}
    losses = (2.0, 2.5, 2.4, 2.2, 2.1)
    racing = racing_of(dict(zip(tried, ((loss,) for loss in losses), strict=True)), rates=tried)
    sentence = verdict_of_test(test, racing).sentence
    assert "LoRA did best at a learning rate of 6e-3, the highest that was tried" in sentence
    assert "Full did best at a learning rate of 6e-5 (" in sentence, "two rates have no edge"
    assert sentence.endswith(
        "The nearest other rates are a factor of 3 and 3.3 away: the best is known no finer."
    )
    losses = (2.0, 2.5, 2.1, 2.1)
    racing = racing_of(dict(zip(rates, ((loss,) for loss in losses), strict=True)), rates=rates)
    assert verdict_of_test(test, racing).sentence.endswith(
        "a factor of 3.3 away: the best is known no finer. The intervals of the losses do not "
        "separate 6e-4 of LoRA from 2e-3."
    )
    only = {name: rates[name] for name in ("Full at 6e-5", "LoRA at 6e-4", "LoRA at 2e-3")}
    racing = racing_of(dict(zip(only, ((2.0,), (2.1,), (2.4,)), strict=True)), rates=rates)
    sentence = verdict_of_test(test, racing).sentence
    assert sentence.endswith("Only one rate of Full was tried, so its best is not known.")
    racing = racing_of({"LoRA at 6e-4": (2.0,)}, rates=rates)
    assert verdict_of_test(test, racing).verdict == "open", "nothing of full ended"


@pytest.mark.parametrize(
    ("stored", "rate"),
    [(2e-4, 2e-4), (0, None), (-1e-4, None), (float("nan"), None), ("2e-4", None), (None, None)],
)
def test_a_rate_that_no_training_can_have_had_is_none(stored: Any, rate: float | None) -> None:
    """Of a spec.json that somebody has written by hand: best rates are divided by each other."""
    figures = racing_of({"LoRA": (2.0,)})[0].contestant.first
    assert learning_rate(replace(figures, spec={"train": {"learning_rate": stored}})) == rate
