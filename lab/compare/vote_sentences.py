"""What a blind vote shows, in sentences for people."""

from __future__ import annotations

from collections.abc import Callable

from lab.compare.preference import MAX_NEEDED_VOTES, GroupVerdict, PairVerdict, VoteOutcome
from lab.formatting import quantity

Names = Callable[[str], str]


def sentences(result: VoteOutcome, name: Names) -> list[str]:
    """The outcome for people, the verdict first. `name` writes a model's name."""
    if isinstance(result.verdict, PairVerdict):
        lines = [_verdict_of_two(result, result.verdict, name)]
    else:
        lines = _verdicts_of_several(result, result.verdict, name)
    bad = "both bad" if len(result.models) == 2 else "all bad"
    counts = [quantity(result.counts.ties, "tie"), f"{result.counts.bad} {bad}"]
    counts.append(f"{result.identical} identical")
    counts += [f"{result.failed} without an answer"] if result.failed else []
    lines.append(", ".join(counts) + ".")
    naming = result.naming
    if naming.decided + naming.ties + naming.bad:
        wins = ", ".join(f"{name(model)} {wins}" for model, wins in naming.wins.items())
        votes = quantity(naming.decided, "decided vote")
        lines.append(f"Counted apart: {votes} on answers that name their model ({wins}).")
    lines += _terms(result)
    lengths = [(name(m), tokens) for m, tokens in result.mean_tokens.items() if tokens]
    if len(lengths) == len(result.models):
        parts = ", ".join(f"{who} {quantity(tokens, 'token')}" for who, tokens in lengths)
        lines.append(f"Mean length of the answers: {parts}.")
    return lines


def _verdict_of_two(result: VoteOutcome, verdict: PairVerdict, name: Names) -> str:
    decided = result.counts.decided
    if not decided:
        return "No preference shown: no vote was decided."
    if verdict.leads and verdict.share is not None:
        wins, (low, high) = result.counts.wins[verdict.leads], verdict.interval
        figures = (
            f"{name(verdict.leads)} preferred in {wins} of {quantity(decided, 'decided vote')} "
            f"({100 * verdict.share:.0f} %, 95 % interval {100 * low:.0f} to "
            f"{100 * high:.0f} %), "
            f"exact sign test p = {_p(verdict.p)}."
        )
    else:
        figures = f"Each was preferred in {decided // 2} of {quantity(decided, 'decided vote')}."
    if verdict.preferred:
        return figures
    if not verdict.leads:
        return f"No preference shown. {figures}"
    more = verdict.needed
    missing = (
        f"more than {MAX_NEEDED_VOTES:,} decided votes" if more is None
        else f"about {quantity(more, 'more decided vote')}"
    )  # fmt: skip
    return f"No preference shown; {missing} would be needed at this rate. {figures}"


def _verdicts_of_several(result: VoteOutcome, verdict: GroupVerdict, name: Names) -> list[str]:
    wins = ", ".join(f"{name(model)} {wins}" for model, wins in result.counts.wins.items())
    decided = quantity(result.counts.decided, "decided vote")
    best = f"Best of {len(result.models)} in {decided}: {wins}."
    if verdict.refused == "connected":
        return [f"No strengths: the votes do not connect all models. {best}"]
    if verdict.refused:
        return [f"No strengths: {name(verdict.refused_for)} never {verdict.refused} a vote. {best}"]
    lines = []
    for model, chance in verdict.beats_base.items():
        low, high = (100 * value for value in chance.interval)
        shown = "" if low > 50 or high < 50 else "; no preference shown"
        lines.append(
            f"{name(model)} is preferred to {name(result.base)} with probability "
            f"{100 * chance.probability:.0f} % (95 % interval {low:.0f} to {high:.0f} %){shown}."
        )
    return [*lines, best]


def _terms(result: VoteOutcome) -> list[str]:
    lines = []
    if result.is_early:
        lines.append(f"Ended before the planned {result.planned}.")
    elif not result.is_over:
        lines.append("The vote is in progress; looking at it before its end makes p too small.")
    elif result.planned is None:
        lines.append(
            "The number of votes was not fixed before: if it ended because of how it looked, p is "
            "too small."
        )
    elif result.votes < result.planned:
        lines.append(f"Planned: {quantity(result.planned, 'vote')}; the set had no more prompts.")
    if len(result.voters) > 1:
        lines.append(
            f"{quantity(len(result.voters), 'voter')}; each prompt counts once, by most of them."
        )
    return lines


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"
