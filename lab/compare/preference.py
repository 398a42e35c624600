"""What blind votes show: which model people prefer, how sure that is, how many votes are missing.

Two models: exact two-sided sign test on the decided votes, with Wilson's interval (Wilson 1927,
J. Am. Stat. Assoc. 22). Three or four: the strengths of Bradley and Terry (1952, Biometrika 39)
under a Gaussian prior, with a bootstrap over prompts. Ties, votes that all are bad, and votes on
answers that name their model are counted apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lab.compare.votes import BAD, FAILED, IDENTICAL, TIE, VotePrompt, VoteSession
from lab.errors import LabError
from lab.schema import quote

LEVEL = 0.05  # of the sign test, below which a preference is shown
Z = 1.959963984540054  # of a two-sided interval of 95 %
PRIOR_SD = 1.5  # of a strength, in log-odds: a priori, odds beyond 20 to 1 are rare
RESAMPLES = 2000
BOOTSTRAP_SEED = 20
MAX_NEEDED_VOTES = 2000  # decided votes, beyond which no number is given


@dataclass(frozen=True)
class VoteCounts:
    """Of some prompts: how often each model was preferred, in how many together, and the rest."""

    wins: dict[str, int]
    decided: int
    ties: int
    bad: int


@dataclass(frozen=True)
class PairVerdict:
    """Of two models. `interval` and `p` as `wilson` and `sign_test` have them, of `share`, which is
    that of the leading model (of the second one where none leads)."""

    preferred: str | None  # None where no preference is shown
    leads: str | None
    share: float | None
    interval: tuple[float, float]
    p: float
    needed: int | None  # as `votes_needed`

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"interval": list(self.interval)}


@dataclass(frozen=True)
class Chance:
    """How probably a model is preferred to the base, with the 95 % interval."""

    probability: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class GroupVerdict:
    """Of three or more models. `refused` says why there are no strengths, as `refusal` does, and
    `refused_for` of which model; strengths are in log-odds."""

    refused: str = ""
    refused_for: str = ""
    strengths: dict[str, float] = field(default_factory=dict)
    beats_base: dict[str, Chance] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        if self.refused:
            return {"refused": self.refused, "refused_for": self.refused_for or None}
        beats = {
            name: {"probability": chance.probability, "interval": list(chance.interval)}
            for name, chance in self.beats_base.items()
        }
        return {"refused": "", "strengths": self.strengths, "beats_base": beats}


@dataclass(frozen=True)
class VoteOutcome:
    """What the votes show between `models`. `counts` are those of blind votes, `naming` those of
    votes on answers that name their model."""

    id: str
    models: list[str]
    base: str
    titles: dict[str, str]
    is_over: bool
    is_early: bool
    planned: int | None
    voters: list[str]
    votes: int
    counts: VoteCounts
    naming: VoteCounts
    identical: int
    failed: int
    mean_tokens: dict[str, float | None]
    verdict: PairVerdict | GroupVerdict

    def to_json(self) -> dict[str, Any]:
        """Counts and verdict among the rest, as `lab votes --json` writes them."""
        values: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name == "counts":
                values |= vars(value)
            elif name == "verdict":
                values |= value.to_json()
            else:
                values[name] = vars(value) if name == "naming" else value
        return values


def sign_test(wins: int, losses: int) -> float:
    """p of the exact two-sided sign test: how often as uneven a result comes of a fair coin."""
    count, more = wins + losses, max(wins, losses)
    tail = sum(math.comb(count, k) for k in range(more, count + 1))
    return min(1.0, tail / 2 ** (count - 1)) if count else 1.0


def wilson(wins: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    share, z2 = wins / count, Z * Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def votes_needed(wins: int, losses: int) -> int | None:
    """How many more decided votes show a preference if they go on as they did (rounded against
    it); 0 if it is shown, None if more than MAX_NEEDED_VOTES would not."""
    count, more = wins + losses, max(wins, losses)
    if count and sign_test(wins, losses) < LEVEL:
        return 0
    if 2 * more == count:
        return None
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, MAX_NEEDED_VOTES + 1)))])
    for total in range(count + 1, MAX_NEEDED_VOTES + 1):
        k = np.arange(more * total // count, total + 1)  # the floor, in whole numbers
        tail = log_factorial[total] - log_factorial[k] - log_factorial[total - k]
        if k[0] * 2 > total and 2 * np.exp(tail - total * math.log(2)).sum() < LEVEL:
            return total - count
    return None


def strengths(wins: np.ndarray) -> np.ndarray:
    """Bradley and Terry's strengths (…, n) in log-odds from `wins` (…, n, n), in which [i, j] is
    how often i was preferred to j (a tie is half a win for both): the maximum of the likelihood
    with a Gaussian prior of PRIOR_SD, by Newton's method. The strengths sum to 0."""
    wins = np.asarray(wins, dtype=float)
    size = wins.shape[-1]
    counts = wins + np.swapaxes(wins, -1, -2)
    theta = np.zeros(wins.shape[:-1])
    for _ in range(100):
        p = 1 / (1 + np.exp(theta[..., None, :] - theta[..., :, None]))  # of i against j
        gradient = (wins - counts * p).sum(-1) - theta / PRIOR_SD**2
        weights = counts * p * (1 - p)
        hessian = -weights
        diagonal = np.arange(size)
        hessian[..., diagonal, diagonal] = weights.sum(-1) - np.einsum("...ii->...i", weights)
        hessian[..., diagonal, diagonal] += 1 / PRIOR_SD**2
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        theta = theta + np.clip(step, -1.0, 1.0)  # a whole step from afar may overshoot
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return theta


def refusal(wins: np.ndarray) -> str:
    """Why strengths say nothing: {"", "connected", "won:I", "lost:I"}, I being a model's place."""
    decided = np.asarray(wins) > 0
    reached, before = np.eye(len(decided), dtype=bool) | decided | decided.T, None
    while before is None or not np.array_equal(before, reached):
        before, reached = reached, reached @ reached
    if not reached.all():
        return "connected"
    for index in range(len(decided)):
        if not decided[index].any():
            return f"won:{index}"
        if not decided[:, index].any():
            return f"lost:{index}"
    return ""


def outcome(session: VoteSession, models: list[str] | None = None) -> VoteOutcome:
    """What the votes show between `models`, by default all of the session.

    Each prompt counts once: with several voters, what most of them say. Raises LabError for a model
    that is not in the vote.
    """
    models = list(models or session.models)
    for name in models:
        if name not in session.models:
            choices = ", ".join(session.models)
            raise LabError(f"'{quote(name)}' is not in this vote.", f"Its models: {choices}.")
    if len(set(models)) != len(models) or len(models) < 2:
        raise LabError("Two or more different models are compared.", "Name others.")
    voted = [prompt for prompt in session.prompts if prompt.verdict]
    blind = [prompt for prompt in voted if not set(prompt.named) & set(models)]
    unblind = [prompt for prompt in voted if set(prompt.named) & set(models)]
    counts = _counted(blind, models)
    base = next((name for name in models if name.startswith("base:")), models[0])
    return VoteOutcome(
        id=session.id,
        models=models,
        base=base,
        titles={name: session.titles.get(name, name) for name in models},
        is_over=session.is_over,
        is_early=session.is_early,
        planned=session.planned,
        voters=sorted({voter for prompt in voted for voter in prompt.votes}),
        votes=len(voted),
        counts=counts,
        naming=_counted(unblind, models),
        identical=sum(prompt.skipped == IDENTICAL for prompt in session.prompts),
        failed=sum(prompt.skipped == FAILED for prompt in session.prompts),
        mean_tokens={name: _mean([p.tokens.get(name, 0) for p in voted]) for name in models},
        verdict=(
            _of_two(counts.wins, models) if len(models) == 2 else _of_several(blind, models, base)
        ),
    )


def _counted(prompts: list[VotePrompt], models: list[str]) -> VoteCounts:
    verdicts = [prompt.verdict for prompt in prompts]
    wins = {name: verdicts.count(name) for name in models}
    return VoteCounts(wins, sum(wins.values()), verdicts.count(TIE), verdicts.count(BAD))


def _mean(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _of_two(wins: dict[str, int], models: list[str]) -> PairVerdict:
    first, second = (wins[name] for name in models)
    preferred = models[0] if first > second else models[1]
    p = sign_test(first, second)
    return PairVerdict(
        preferred=preferred if p < LEVEL else None,
        leads=preferred if first != second else None,
        share=wins[preferred] / (first + second) if first + second else None,
        interval=wilson(wins[preferred], first + second),
        p=p,
        needed=votes_needed(first, second),
    )


def _of_several(prompts: list[VotePrompt], models: list[str], base: str) -> GroupVerdict:
    """Strengths, and how probably each model is preferred to the base."""
    each = np.array([_wins(prompt, models) for prompt in prompts])
    each = each.reshape(-1, len(models), len(models))
    decided = np.array([_wins(p, models) for p in prompts if p.verdict != TIE])
    reason = refusal(decided.reshape(-1, len(models), len(models)).sum(0))
    if reason:
        kind, _, index = reason.partition(":")
        return GroupVerdict(refused=kind, refused_for=models[int(index)] if index else "")
    theta = strengths(each.sum(0))
    chance = np.random.default_rng(BOOTSTRAP_SEED)
    draws = chance.multinomial(len(each), np.full(len(each), 1 / len(each)), RESAMPLES)
    resampled = strengths(np.tensordot(draws, each, axes=1))
    base_at = models.index(base)
    beats: dict[str, Chance] = {}
    for at, name in enumerate(models):
        if name != base:
            odds = 1 / (1 + np.exp(resampled[:, base_at] - resampled[:, at]))
            low, high = np.quantile(odds, [0.025, 0.975])
            probability = 1 / (1 + math.exp(theta[base_at] - theta[at]))
            beats[name] = Chance(probability, (float(low), float(high)))
    values = {name: float(value) for name, value in zip(models, theta, strict=True)}
    return GroupVerdict(strengths=values, beats_base=beats)


def _wins(prompt: VotePrompt, models: list[str]) -> np.ndarray:
    """(n, n): the best is preferred to each other one; a tie is half a win for both of each pair;
    what was all bad, or won by a model that is left out, says nothing."""
    wins = np.zeros((len(models), len(models)))
    if prompt.verdict == TIE:
        wins += 0.5
    elif prompt.verdict in models:
        wins[models.index(prompt.verdict)] = 1
    np.fill_diagonal(wins, 0)
    return wins
