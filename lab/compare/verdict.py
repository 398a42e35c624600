"""The verdict on a comparison, in words: which contestant has the lowest evaluation loss, how sure
that is, and what the second best has over it. Never one score over all figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lab.compare.contestants import (
    Contestant,
    Names,
    difference_by_row,
    difference_to_base,
)
from lab.compare.curves import Curve, curve
from lab.compare.equal_terms import EqualTerms
from lab.compare.paired import PairedDifference, half_interval
from lab.formatting import duration, percent, signed
from lab.runs.run_progress import run_progress

# What two single runs of the same settings may differ by, as a share: without several seeds, only
# more than this is told as a difference.
NOISE = {
    "peak_bytes": 0.02,
    "seconds": 0.05,
    "tokens_per_s": 0.05,
    "energy_wh": 0.05,
    "cost": 0.05,
    "artifact_bytes": 0.0,
}
FORGETTING_NOISE = 0.02  # nats a token, of runs whose probe gave no interval


@dataclass(frozen=True)
class Badge:
    """One thing in which the best and the second best differ; `key` is the figure."""

    key: str
    text: str


@dataclass(frozen=True)
class ComparisonVerdict:
    """`case` names the sentence that holds; `headline` and `detail` are in words, with names as the
    caller wrote them. `best` and `second` are ids."""

    case: str
    headline: str
    detail: str = ""
    badges: tuple[Badge, ...] = ()
    best: str | None = None
    second: str | None = None
    difference: PairedDifference | None = None


def verdict(
    contestants: Sequence[Contestant], terms: EqualTerms, names: Names
) -> ComparisonVerdict:
    """The first case that holds."""
    if len(contestants) > 1 and terms.unequal:
        headline = "No verdict: the runs are not comparable."
        return ComparisonVerdict("unequal", headline, terms.unequal[0])
    if len(contestants) > 1 and not all(each.has_ended for each in contestants):
        return _so_far(contestants, names)
    ranked = ranking(contestants)
    if not ranked:
        return ComparisonVerdict("unmeasured", "Nothing has been evaluated yet.")
    base = _base_loss(contestants)
    best = ranked[0]
    loss = best.value("loss") or 0.0
    if base is not None and loss >= base:
        return ComparisonVerdict("base", f"None is better than the base ({base:.2f}).", best=None)
    if len(ranked) == 1:
        return _alone(best, base, names)
    return _best_of(ranked, names)


def ranking(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Those with an evaluation, the lowest loss first."""
    measured = [each for each in contestants if each.value("loss") is not None]
    return sorted(measured, key=lambda each: each.value("loss") or 0.0)


def _base_loss(contestants: Sequence[Contestant]) -> float | None:
    values = [each.value("base_loss") for each in contestants]
    return next((value for value in values if value is not None), None)


def _alone(best: Contestant, base: float | None, names: Names) -> ComparisonVerdict:
    loss = best.value("loss") or 0.0
    if base is None:
        headline = f"{names(best)} has an evaluation loss of {loss:.2f}"
        return ComparisonVerdict("alone", headline, "Its base was not measured.", best=best.id)
    headline = f"{names(best)} is better than the base: {loss:.2f} against {base:.2f}"
    difference = difference_to_base(best)
    if difference is None or not math.isfinite(difference.half):
        return ComparisonVerdict("alone", headline, best=best.id, difference=difference)
    detail = (
        f"{plus_minus(difference)} below it (95 % interval, paired by example; better on "
        f"{difference.lower} of {difference.rows})."
    )
    return ComparisonVerdict("alone", headline, detail, best=best.id, difference=difference)


def _best_of(ranked: list[Contestant], names: Names) -> ComparisonVerdict:
    best, second = ranked[:2]
    difference = loss_difference(best, second)
    badges = tuple(compare_badges(best, second))
    ids = {"best": best.id, "second": second.id, "difference": difference}
    headline = f"{names(best)} has the lowest evaluation loss: {best.value('loss'):.2f}"
    others = "".join(
        f" {names(other)} is {_gap(other, best):.2f} above it." for other in ranked[2:4]
    )
    if difference is None or not math.isfinite(difference.half):
        detail = (
            f"{_gap(second, best):.2f} below {names(second)} by the means. How sure that is cannot "
            f"be said: the losses of single examples were not recorded.{others}"
        )
        return ComparisonVerdict("means", headline, detail, badges, **ids)  # type: ignore[arg-type]
    if not difference.is_shown:
        headline = (
            f"No difference shown between {names(best)} and {names(second)}: "
            f"{plus_minus(difference)}."
        )
        others = others.replace("above it.", f"above {names(best)}.")
        detail = (others + _seeds(best, second, names)).strip()
        return ComparisonVerdict("no difference", headline, detail, badges, **ids)  # type: ignore[arg-type]
    if difference.seeds < 2:
        detail = (
            f"{plus_minus(difference)} below {names(second)} by example."
            f"{_seeds(best, second, names)}{others}"
        )
        return ComparisonVerdict("one seed", headline, detail, badges, **ids)  # type: ignore[arg-type]
    how = "95 % interval, by seed"
    if difference.rows:
        how = f"95 % interval, paired by example; better on {difference.lower} of {difference.rows}"
    detail = f"{plus_minus(difference)} below {names(second)} ({how}).{others}"
    badges = (Badge("loss", "Difference shown"), *badges)
    return ComparisonVerdict("shown", headline, detail, badges, **ids)  # type: ignore[arg-type]


def _seeds(best: Contestant, second: Contestant, names: Names) -> str:
    single = [each for each in (best, second) if len(each.runs) == 1]
    if len(single) == 2:
        return " One seed each: another seed may turn it."
    return f" One seed of {names(single[0])}: another seed may turn it." if single else ""


def _gap(higher: Contestant, lower: Contestant) -> float:
    return (higher.value("loss") or 0.0) - (lower.value("loss") or 0.0)


def plus_minus(difference: PairedDifference) -> str:
    """ "0.11 ± 0.03": how far apart, without a sign; three decimals where two would say 0.00."""
    digits = 2 if max(abs(difference.mean), difference.half) >= 0.1 else 3
    return f"{abs(difference.mean):.{digits}f} ± {difference.half:.{digits}f}"


def loss_difference(
    first: Contestant, second: Contestant, *, early: bool = False
) -> PairedDifference | None:
    """By held-out row where both wrote them down, else by seed where both have several. `early`:
    at the first evaluation of several."""
    by_row = difference_by_row(first, second, early=early)
    if by_row is not None:
        return by_row
    key = "early_loss" if early else "loss"
    apart = seed_difference(first.values(key), second.values(key))
    if apart is None:
        return None
    seeds = min(len(first.runs), len(second.runs))
    return PairedDifference(apart[0], apart[1], 0, 0, seeds)


def seed_difference(first: list[float], second: list[float]) -> tuple[float, float] | None:
    """(difference of means, half of its 95 % interval by Welch); None without two seeds each."""
    if len(first) < 2 or len(second) < 2:
        return None
    parts = [(float(np.var(part, ddof=1) / len(part)), len(part) - 1) for part in (first, second)]
    return float(np.mean(first) - np.mean(second)), half_interval(parts)


def figure_difference(first: Contestant, second: Contestant, key: str) -> tuple[float, float]:
    """(the first's figure less the second's, what it has to exceed); NaN where one lacks it."""
    values = first.value(key), second.value(key)
    if values[0] is None or values[1] is None:
        return math.nan, math.inf
    if key in ("loss", "early_loss"):
        difference = loss_difference(first, second, early=key == "early_loss")
        if difference is None:
            return values[0] - values[1], math.inf
        return difference.mean, difference.half
    apart = seed_difference(first.values(key), second.values(key))
    if apart is not None:
        return apart
    if key in ("forgetting", "kl"):
        return values[0] - values[1], _forgetting_noise(first, second, key)
    return values[0] - values[1], NOISE.get(key, 0.0) * max(abs(values[0]), abs(values[1]))


def _forgetting_noise(first: Contestant, second: Contestant, key: str) -> float:
    """What the difference of two has to exceed: the half intervals that drawing the prompts again
    gave, added as those of independent draws, which is rather too much, since both answer the same
    prompts."""
    halves = [each.value(f"{key}_half") for each in (first, second)]
    known = [half for half in halves if half]  # 0 is that of a single prompt
    return math.hypot(*known) if len(known) == 2 else FORGETTING_NOISE


def compare_badges(best: Contestant, second: Contestant) -> list[Badge]:
    """What the best has over the second best, and the second over the best, beside the loss."""
    badges = []
    for key, what in (
        ("peak_bytes", "memory"),
        ("seconds", "time"),
        ("artifact_bytes", "size"),
        ("energy_wh", "energy"),
    ):
        apart, floor = figure_difference(best, second, key)
        if not abs(apart) > floor:
            continue
        reference = second.value(key) or 0.0
        if not reference:
            continue
        badges.append(Badge(key, f"{share(apart / reference)} {what}"))
    apart, floor = figure_difference(best, second, "forgetting")
    if abs(apart) > floor:
        word = "less" if apart < 0 else "more"
        values = [signed(each.value("forgetting") or 0.0) for each in (best, second)]
        badges.append(Badge("forgetting", f"Forgets {word}: {values[0]} against {values[1]}"))
    return badges


def share(change: float) -> str:
    """ "33 % less" of −0.33; "5 times" from three times on."""
    if change >= 2:
        return f"{1 + change:.0f} times the"
    return f"{percent(change)} {'less' if change < 0 else 'more'}"


def _so_far(contestants: Sequence[Contestant], names: Names) -> ComparisonVerdict:
    """Who leads at the same tokens while some still train."""
    left = [
        run_progress(run.run).left_s
        for contestant in contestants
        for run in contestant.runs
        if run.entry.status.is_active
    ]
    longest = max((value for value in left if value), default=None)
    statuses = [run.entry.status for contestant in contestants for run in contestant.runs]
    has_begun = any(status.is_active or status.has_ended for status in statuses)
    detail = f"{'The others' if has_begun else 'All of them'} wait in the queue."
    if longest:
        detail = f"About {duration(longest)} left."
    if any(left) and not longest:
        detail = ""
    curves = {each.id: curve(each, "eval/loss", "tokens") for each in contestants}
    lines = {name: line for name, line in curves.items() if line is not None and len(line.x) > 1}
    if len(lines) < 2:
        return ComparisonVerdict(
            "training", "Fewer than two runs have been evaluated so far.", detail
        )
    common = min(float(line.x[-1]) for line in lines.values())
    values = {name: _at(line, common) for name, line in lines.items()}
    order = sorted(values, key=lambda name: values[name])
    by_id = {each.id: each for each in contestants}
    headline = (
        f"{names(by_id[order[0]])} leads at the same tokens so far: "
        f"{values[order[0]]:.2f} against {values[order[1]]:.2f}."
    )
    return ComparisonVerdict("training", headline, detail, best=order[0], second=order[1])


def _at(line: Curve, x: float) -> float:
    return float(np.interp(x, line.x, line.y))
