"""What a race says of the claims that it tests.

A claim is held against a difference of two contestants and its 95 % interval: confirmed where the
difference is shown in the direction of the claim, off where it is shown in the other one, open
where it is not shown. A best learning rate has no interval: what its sentence says instead is how
far apart the rates are that were tried, and from which of them the losses do not separate it. A
claim with several tests is confirmed where all of them are, and off where
one of them is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lab import formatting
from lab.atomic_files import finite_number, part
from lab.compare.contestants import Contestant
from lab.compare.equal_terms import TOKENS_APART
from lab.compare.evidence import ClaimVerdict
from lab.compare.finishers import Finisher
from lab.compare.race_file import ClaimTest
from lab.compare.race_scores import RaceScores
from lab.compare.run_figures import RunFigures
from lab.compare.verdict import figure_difference, seed_difference
from lab.evals.score import TITLES

# Figures of RunFigures that evidence keeps, by its field's name, with their words.
FIGURES = {
    "loss": "evaluation loss",
    "early_loss": "evaluation loss at the first evaluation",
    "base_loss": "evaluation loss of the base",
    "forgetting": "forgetting",
    "kl": "KL divergence from the base",
    "seconds": "training time",
    "tokens": "tokens",
    "flops": "FLOPs",
    "peak_bytes": "peak memory",
    "tokens_per_s": "tokens/s",
    "artifact_bytes": "size of the result",
    "trainable": "trainable parameters",
}

RATE = "learning_rate"  # at which a contestant did best


def claim_verdicts(
    tests: Sequence[ClaimTest], racing: list[Finisher], scores: RaceScores | None = None
) -> dict[str, ClaimVerdict]:
    """{claim: verdict}, in the order of the tests."""
    return {
        claim: _together(
            [verdict_of_test(test, racing, scores) for test in tests if test.claim == claim]
        )
        for claim in dict.fromkeys(test.claim for test in tests)
    }


def _together(verdicts: list[ClaimVerdict]) -> ClaimVerdict:
    """Of all tests of one claim; `value` is that of the test which decides."""
    decides = next(
        (
            each
            for verdict in ("off", "open", "depends")
            for each in verdicts
            if each.verdict == verdict
        ),
        verdicts[0],
    )
    sentence = " ".join(each.sentence for each in verdicts)
    return ClaimVerdict(decides.verdict, decides.value, sentence)


def verdict_of_test(
    test: ClaimTest, racing: list[Finisher], scores: RaceScores | None = None
) -> ClaimVerdict:
    """What the race says of one test. "open" where a contestant has no run that ended well."""
    if test.figure == RATE:
        return _rate_ratio_verdict(test, racing) if test.than else _rate_verdict(test, racing)
    sides = {finisher.name: finisher.contestant for finisher in racing}
    missing = [name for name in (test.of, test.than, *test.less) if name not in sides]
    if missing:
        return ClaimVerdict("open", None, f"No run of {missing[0]} has ended well.")
    if test.figure in TITLES:
        return _score_verdict(test, sides, scores)
    apart, half = figure_difference(sides[test.of], sides[test.than], test.figure)
    words = FIGURES.get(test.figure, test.figure)
    tokens = [sides[name].value("early_tokens") or 0.0 for name in (test.of, test.than)]
    if test.figure == "early_loss" and max(tokens) > TOKENS_APART * min(tokens):
        points = " and ".join(f"{count:,.0f}" for count in tokens)
        sentence = f"The first evaluations are at different points: after {points} tokens."
        return ClaimVerdict("open", None, sentence)
    if not math.isfinite(apart):
        return ClaimVerdict("open", None, f"The runs did not measure {words}.")
    if test.ratio:
        return _ratio_verdict(test, sides, words)
    if test.less:
        return _gap_verdict(test, sides, words, apart, half)
    values = [sides[side].value(test.figure) for side in (test.of, test.than)]
    seeds = min(len(sides[test.of].runs), len(sides[test.than].runs))
    return _verdict(test, words, values, apart, half, seeds)


def _verdict(
    test: ClaimTest,
    words: str,
    values: list[float | None],
    apart: float,
    half: float,
    seeds: int,
) -> ClaimVerdict:
    sides = " against ".join(
        f"{side}: {_text(value, test.figure)}"
        for side, value in zip((test.of, test.than), values, strict=True)
    )
    sentence = f"{_capital(words)} of {sides} ({_change(test, apart, half, seeds)})."
    return _by_interval(test, apart, half, sentence)


def _gap_verdict(
    test: ClaimTest, sides: dict[str, Contestant], words: str, apart: float, half: float
) -> ClaimVerdict:
    """How much larger one difference is than another one, with both intervals added as those of
    independent measurements: rather too much, since all contestants see the same rows."""
    others = [sides[side] for side in test.less]
    other, other_half = figure_difference(others[0], others[1], test.figure)
    if not math.isfinite(other):
        return ClaimVerdict("open", None, f"The runs did not measure {words}.")
    pairs = (
        f"{_signed(apart, test.figure)} from {test.than} to {test.of} against "
        f"{_signed(other, test.figure)} from {test.less[1]} to {test.less[0]}"
    )
    seeds = min(len(side.runs) for side in (sides[test.of], sides[test.than], *others))
    gap, gap_half = apart - other, math.hypot(half, other_half)
    sentence = f"{_capital(words)}: {pairs} ({_change(test, gap, gap_half, seeds)})."
    return _by_interval(test, gap, gap_half, sentence)


def _by_interval(test: ClaimTest, apart: float, half: float, sentence: str) -> ClaimVerdict:
    if abs(apart) <= half:
        return ClaimVerdict("open", apart, f"No difference shown. {sentence}")
    is_lower = apart < 0
    return ClaimVerdict(
        "confirmed" if is_lower == (test.expect == "lower") else "off", apart, sentence
    )


def _change(test: ClaimTest, apart: float, half: float, seeds: int) -> str:
    """ "+0.1 ± 0.02, 2 seeds each"."""
    sure = "with nothing to say how sure that is"
    if math.isfinite(half):
        sure = f"± {_text(half, test.figure, digits=2)}"
    seeds_text = "one seed each" if seeds == 1 else f"{seeds} seeds each"
    return f"{_signed(apart, test.figure)} {sure}, {seeds_text}"


def _score_verdict(
    test: ClaimTest, sides: dict[str, Contestant], scores: RaceScores | None
) -> ClaimVerdict:
    """By the scores of each side's seeds on the race's questions."""
    known = scores.models if scores is not None else {}
    values = [
        [
            known[run.id][test.figure]
            for run in sides[side].runs
            if test.figure in known.get(run.id, {})
        ]
        for side in (test.of, test.than)
    ]
    words = TITLES[test.figure]
    if not all(values):
        return ClaimVerdict("open", None, f"The runs were not scored, so {words} is not known.")
    means = [sum(each) / len(each) for each in values]
    apart, half = seed_difference(*values) or (means[0] - means[1], math.inf)
    return _verdict(test, words, list(means), apart, half, min(map(len, values)))


def _ratio_verdict(test: ClaimTest, sides: dict[str, Contestant], words: str) -> ClaimVerdict:
    """Whether the figure of one is so many times the other's; `value` is the measured ratio."""
    values = sides[test.of].value(test.figure), sides[test.than].value(test.figure)
    if values[0] is None or not values[1]:
        return ClaimVerdict("open", None, f"The runs did not measure {words}.")
    ratio, (low, high) = values[0] / values[1], test.ratio[:2]
    sentence = (
        f"{_capital(words)} of {test.of} is {ratio:.2f} times that of {test.than} "
        f"({_text(values[0], test.figure)} against {_text(values[1], test.figure)}); "
        f"claimed: {low:g} to {high:g} times."
    )
    return ClaimVerdict("confirmed" if low <= ratio <= high else "off", ratio, sentence)


def _rate_verdict(test: ClaimTest, racing: list[Finisher]) -> ClaimVerdict:
    """Whether the rate at which a contestant did best on the whole budget lies between the claim's
    two: what the short runs of a ladder chose need not be that one."""
    losses = _losses_by_rate(test.of, racing)
    if not losses:
        return ClaimVerdict("open", None, "No learning rate has an evaluation loss.")
    best = min(losses, key=lambda rate: losses[rate])
    low, high = test.ratio[:2]
    sentence = (
        f"{_best_rate(test.of, losses)}; "
        f"claimed: {formatting.rate(low)} to {formatting.rate(high)}. "
        f"{_certainty([test.of], racing)}"
    )
    return ClaimVerdict("confirmed" if low <= best <= high else "off", best, sentence)


def _rate_ratio_verdict(test: ClaimTest, racing: list[Finisher]) -> ClaimVerdict:
    """Whether the best rate of one is so many times the other's; `value` is that ratio."""
    sides = {side: _losses_by_rate(side, racing) for side in (test.of, test.than)}
    for side, losses in sides.items():
        if not losses:
            return ClaimVerdict("open", None, f"No run of {side} has ended well.")
    best = [min(losses, key=lambda rate: losses[rate]) for losses in sides.values()]
    ratio, (low, high) = float(f"{best[0] / best[1]:.3g}"), test.ratio[:2]
    tried = "; ".join(_best_rate(side, losses) for side, losses in sides.items())
    sentence = f"{tried}: {ratio:g} times as high; claimed: {low:g} to {high:g} times. "
    sentence += _certainty([test.of, test.than], racing)
    return ClaimVerdict("confirmed" if low <= ratio <= high else "off", ratio, sentence)


def _losses_by_rate(name: str, racing: list[Finisher]) -> dict[float, float]:
    """{learning rate: evaluation loss} of a contestant on the whole budget: its own rate, the one
    that a ladder chose ("LoRA, best of 3"), and contestants named by theirs ("LoRA at 2e-4")."""
    return {
        rate: loss
        for rate, contestant in _by_rate(name, racing).items()
        if (loss := contestant.value("loss")) is not None
    }


def _by_rate(name: str, racing: list[Finisher]) -> dict[float, Contestant]:
    return {
        rate: each.contestant
        for each in racing
        if each.name == name or each.name.startswith((f"{name}, best of ", f"{name} at "))
        if (rate := learning_rate(each.contestant.first)) is not None
        if each.contestant.value("loss") is not None
    }


def _certainty(names: list[str], racing: list[Finisher]) -> str:
    """How sure best rates are: the distance to the nearest other rate that was tried, and whether
    the interval of the difference of losses separates the best from every other one."""
    factors, unsure = [], []
    for name in names:
        tried = _by_rate(name, racing)
        losses = _losses_by_rate(name, racing)
        best = min(losses, key=lambda rate: losses[rate])
        others = [rate for rate in tried if rate != best]
        if not others:
            return f"Only one rate of {name} was tried, so its best is not known."
        factors.append(min(max(rate, best) / min(rate, best) for rate in others))
        alike = []
        for rate in sorted(others, key=lambda rate: losses[rate]):
            apart, half = figure_difference(tried[best], tried[rate], "loss")
            if not abs(apart) > half:
                alike.append(formatting.rate(rate))
        if alike:
            unsure.append(f"{formatting.rate(best)} of {name} from {' or '.join(alike)}")
    steps = " and ".join(dict.fromkeys(f"{factor:.2g}" for factor in factors))
    sentence = f"The nearest other rates are a factor of {steps} away: the best is known no finer."
    if unsure:
        sentence += f" The intervals of the losses do not separate {' and '.join(unsure)}."
    return sentence


def _best_rate(name: str, losses: dict[float, float]) -> str:
    best = min(losses, key=lambda rate: losses[rate])
    listed = ", ".join(f"{formatting.rate(rate)}: {loss:.2f}" for rate, loss in losses.items())
    edge = ""
    if len(losses) > 2 and best in (min(losses), max(losses)):  # a better one may lie beyond
        edge = f", the {'lowest' if best == min(losses) else 'highest'} that was tried"
    return (
        f"{name} did best at a learning rate of {formatting.rate(best)}{edge} (evaluation losses "
        f"on the whole budget: {listed})"
    )


def learning_rate(figures: RunFigures) -> float | None:
    """That of the run's spec; None where no training can have had it."""
    rate = finite_number(part(figures.spec, "train").get("learning_rate"))
    return float(rate) if rate is not None and rate > 0 else None


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _signed(value: float, figure: str) -> str:
    return f"{'-' if value < 0 else '+'}{_text(abs(value), figure)}"


def _text(value: float | None, figure: str = "", digits: int = 3) -> str:
    """Never "1.23e+03": whole numbers where `digits` do not reach."""
    if value is None:
        return "–"
    if figure.endswith("_bytes"):
        return formatting.size(value)
    return f"{value:.{digits}g}" if abs(value) < 10**digits - 0.5 else f"{value:,.0f}"
