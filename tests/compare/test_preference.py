"""What votes show, held against plain re-computations."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.compare import preference, votes
from lab.compare.preference import GroupVerdict, PairVerdict, VoteCounts
from lab.compare.vote_sentences import sentences
from lab.compare.votes import BAD, TIE, VotePrompt, VoteSession
from lab.errors import LabError

A, B, C = "base:a", "run:b", "run:c"


def session_of(verdicts: list[str], models: tuple[str, ...] = (A, B), **named: Any) -> VoteSession:
    prompts = [
        VotePrompt(f"prompt {n}", order=list(models), answers={m: m for m in models},
                   tokens={m: 10 * (place + 1) for place, m in enumerate(models)},
                   votes={"me": verdict})
        for n, verdict in enumerate(verdicts)
    ]  # fmt: skip
    values = {"planned": len(verdicts), "ended": 1.0} | named
    return VoteSession("20260101-000000-abcd", list(models), prompts=prompts, **values)


def words(session: VoteSession) -> str:
    return "\n".join(sentences(preference.outcome(session), lambda name: name))


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(13, 4, 0.04904174), (5, 0, 0.0625), (6, 0, 0.03125), (5, 5, 1.0), (0, 0, 1.0), (0, 1, 1.0)],
)
def test_p_is_that_of_the_exact_test(wins: int, losses: int, p: float) -> None:
    assert preference.sign_test(wins, losses) == pytest.approx(p, rel=1e-6)
    assert preference.sign_test(losses, wins) == preference.sign_test(wins, losses)


def test_p_counts_all_results_that_are_as_uneven() -> None:
    for count in range(1, 11):
        for wins in range(count + 1):
            tosses = itertools.product((0, 1), repeat=count)
            distance = abs(2 * wins - count)
            as_uneven = sum(abs(2 * sum(toss) - count) >= distance for toss in tosses)
            expected = float(Fraction(as_uneven, 2**count))
            assert preference.sign_test(wins, count - wins) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    [(13, 17, 0.5274, 0.9045), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_the_interval_is_wilsons(wins: int, count: int, low: float, high: float) -> None:
    assert preference.wilson(wins, count) == pytest.approx((low, high), abs=1e-4)


def test_the_ends_of_the_interval_are_the_shares_that_a_z_test_just_accepts() -> None:
    for end in preference.wilson(13, 17):
        z = (13 / 17 - end) / math.sqrt(end * (1 - end) / 17)
        assert abs(z) == pytest.approx(1.959964, abs=1e-5)


def test_the_missing_votes_are_the_fewest_that_decide() -> None:
    assert preference.votes_needed(13, 4) == 0
    assert preference.votes_needed(1, 0) == 5, "six of six is the first p below 0.05"
    assert preference.votes_needed(5, 5) is None
    assert preference.votes_needed(0, 0) is None
    assert preference.votes_needed(1001, 1000) is None, "more than anybody gives"
    for wins, losses in ((3, 1), (6, 4), (11, 7), (2, 1), (60, 50)):
        more = preference.votes_needed(wins, losses)
        assert more is not None and more == preference.votes_needed(losses, wins)

        def p_after(added: int, wins: int = wins, losses: int = losses) -> float:
            total = wins + losses + added
            future = wins * total // (wins + losses)
            return preference.sign_test(future, total - future)

        assert p_after(more) < 0.05
        assert all(p_after(added) >= 0.05 for added in range(more))


def test_two_models_have_the_sentence_of_a_verdict() -> None:
    session = session_of([B] * 13 + [A] * 4 + [TIE] * 2 + [BAD])
    session.prompts += [VotePrompt(f"same {n}", skipped=votes.IDENTICAL) for n in range(3)]
    assert words(session) == (
        "run:b preferred in 13 of 17 decided votes (76 %, 95 % interval 53 to 90 %), exact sign "
        "test p = 0.049.\n"
        "2 ties, 1 both bad, 3 identical.\n"
        "Mean length of the answers: base:a 10 tokens, run:b 20 tokens."
    )


def test_no_preference_is_told_with_the_votes_that_are_missing() -> None:
    more = preference.votes_needed(6, 4)
    text = words(session_of([B] * 6 + [A] * 4))
    assert text.startswith(
        f"No preference shown; about {more} more decided votes would be needed at this rate. run:b "
        "preferred in 6 of 10 decided votes (60 %, 95 % interval 31 to 83 %), exact sign test p = "
    )
    assert words(session_of([A, B])).startswith("No preference shown. Each was preferred in 1 of 2")
    assert words(session_of([TIE, BAD])).startswith("No preference shown: no vote was decided.")
    tied = preference.outcome(session_of([TIE] * 9)).verdict
    assert isinstance(tied, PairVerdict) and tied.preferred is None


def test_votes_on_answers_that_name_their_model_are_counted_apart() -> None:
    session = session_of([B] * 10)
    for prompt in session.prompts[:6]:
        prompt.named = [B]
    result = preference.outcome(session)
    assert result.counts.wins == {A: 0, B: 4} and result.votes == 10
    assert isinstance(result.verdict, PairVerdict) and result.verdict.p == 0.125
    assert result.naming == VoteCounts({A: 0, B: 6}, decided=6, ties=0, bad=0)
    text = words(session)
    assert (
        "Counted apart: 6 decided votes on answers that name their model (base:a 0, run:b 6)."
        in text
    )


def test_how_a_vote_ended_is_told() -> None:
    assert "Ended before the planned 20." in words(session_of([A, B], planned=20))
    assert "was not fixed before" in words(session_of([A, B], planned=None))
    assert "The vote is in progress" in words(session_of([A, B], ended=0.0))
    of_set = session_of([A, B], planned=5, source="a set")
    assert "Planned: 5 votes; the set had no more prompts." in words(of_set)
    several = session_of([A, A, B])
    several.prompts[0].votes |= {"x": B, "y": B}
    result = preference.outcome(several)
    assert result.counts.wins == {A: 1, B: 2} and result.voters == ["me", "x", "y"]
    assert "3 voters; each prompt counts once" in words(several)


def bisected(wins: int, losses: int) -> float:
    """The difference d of two strengths d/2 and -d/2 at the best of the posterior, where the slope
    wins - n·σ(d) - d/(2·sd²) is zero."""
    low, high = -20.0, 20.0
    for _ in range(200):
        d = (low + high) / 2
        slope = wins - (wins + losses) / (1 + math.exp(-d)) - d / (2 * preference.PRIOR_SD**2)
        low, high = (d, high) if slope > 0 else (low, d)
    return low


@pytest.mark.parametrize(("wins", "losses"), [(13, 4), (5, 0), (0, 300), (1, 1), (400, 1)])
def test_strengths_of_two_solve_the_equation_of_the_posterior(wins: int, losses: int) -> None:
    theta = preference.strengths(np.array([[0, wins], [losses, 0]]))
    assert theta[0] - theta[1] == pytest.approx(bisected(wins, losses), abs=1e-8)
    assert theta.sum() == pytest.approx(0, abs=1e-9)


def log_posterior(theta: np.ndarray, wins: np.ndarray) -> float:
    value = -float((theta**2).sum()) / (2 * preference.PRIOR_SD**2)
    for i, j in itertools.permutations(range(len(theta)), 2):
        value -= wins[i, j] * math.log1p(math.exp(theta[j] - theta[i]))
    return value


def test_strengths_of_four_are_the_top_of_the_posterior() -> None:
    chance = np.random.default_rng(0)
    for _ in range(5):
        wins = chance.integers(0, 30, (4, 4)).astype(float)
        np.fill_diagonal(wins, 0)
        theta = preference.strengths(wins)
        best = log_posterior(theta, wins)
        for direction in chance.normal(size=(40, 4)):
            assert log_posterior(theta + 1e-3 * direction, wins) < best
    stacked = np.stack([wins, wins.T])
    assert np.allclose(preference.strengths(stacked)[0], theta), "several tables at once"
    assert np.allclose(preference.strengths(stacked)[1], -theta)


def test_strengths_are_those_of_choix() -> None:
    wins = np.array([[0, 4, 4], [15, 0, 15], [4, 4, 0]])
    # choix 0.4.1: opt_pairwise(3, pairs, alpha=1 / (2 * 1.5**2), tol=1e-12)
    expected = [-0.42115517, 0.84231035, -0.42115517]
    assert preference.strengths(wins) == pytest.approx(expected, abs=1e-7)


def test_three_models_are_compared_with_the_base() -> None:
    models = (A, B, C)
    session = session_of([B] * 14 + [A] * 3 + [C] * 3 + [TIE] * 2 + [BAD], models)
    result = preference.outcome(session)
    # the winner beats both others; each of the two ties is half a win in every pair
    wins = np.array([[0, 4, 4], [15, 0, 15], [4, 4, 0]], dtype=float)
    theta = preference.strengths(wins)
    assert isinstance(result.verdict, GroupVerdict)
    beats = result.verdict.beats_base
    assert beats[B].probability == pytest.approx(1 / (1 + math.exp(theta[0] - theta[1])))
    low, high = beats[B].interval
    assert 0.5 < low < beats[B].probability < high < 1
    assert beats[C].probability == pytest.approx(0.5)
    low, high = beats[C].interval
    assert low < 0.5 < high
    assert preference.outcome(session) == result, "the seed is fixed"
    text = words(session)
    assert text.startswith("run:b is preferred to base:a with probability ")
    assert "run:c is preferred to base:a with probability 50 %" in text
    assert "no preference shown" in text and "1 all bad" in text
    assert "Best of 3 in 20 decided votes: base:a 3, run:b 14, run:c 3." in text


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        ([B] * 9 + [C], "base:a never won a vote"),
        ([B] * 9 + [C] + [TIE] * 5, "base:a never won a vote"),
        ([BAD] * 4, "do not connect all models"),
        ([], "do not connect all models"),
    ],
)
def test_strengths_are_refused_where_they_say_nothing(verdicts: list[str], says: str) -> None:
    session = session_of(verdicts, (A, B, C))
    assert f"No strengths: {says}" in words(session).replace("the votes ", "")
    assert "beats_base" not in preference.outcome(session).to_json()


def test_what_is_not_connected_is_seen() -> None:
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[1, 0] = wins[2, 3] = wins[3, 2] = 5
    assert preference.refusal(wins) == "connected"
    wins[1, 2] = 1
    assert preference.refusal(wins) == ""
    wins[2] = 0
    assert preference.refusal(wins) == "won:2"
    wins[2, 3], wins[:, 3] = 1, 0
    wins[3, 2] = 1
    wins[2, 0] = 1
    assert preference.refusal(wins) == "lost:3"


def test_a_pair_of_a_vote_of_three_is_compared_alone() -> None:
    session = session_of([A] * 2 + [B] * 9 + [C] * 7 + [TIE], (A, B, C))
    result = preference.outcome(session, [A, B])
    assert result.counts.wins == {A: 2, B: 9} and result.counts.ties == 1
    assert isinstance(result.verdict, PairVerdict)
    assert result.verdict.p == pytest.approx(preference.sign_test(9, 2))
    with pytest.raises(LabError, match="'run:x' is not in this vote"):
        preference.outcome(session, [A, "run:x"])
    with pytest.raises(LabError, match="Two or more"):
        preference.outcome(session, [A])


def test_an_outcome_is_written_as_json(lab_home: Path) -> None:
    import json

    head = "id models base titles is_over is_early planned voters votes wins decided ties bad "
    head += "naming identical failed mean_tokens "
    of_pair = "preferred leads share interval p needed"
    for models, verdicts, keys in (
        ((A, B), [A, B, TIE] * 4, of_pair),
        ((A, B, C), [A, B, TIE] * 4 + [C], "refused strengths beats_base"),
        ((A, B, C), [A, B, TIE] * 4, "refused refused_for"),
    ):
        stored = preference.outcome(session_of(verdicts, models)).to_json()
        assert json.loads(json.dumps(stored)) == stored
        assert " ".join(stored) == head + keys, "The keys of --json."
        assert list(stored["naming"]) == ["wins", "decided", "ties", "bad"]
    assert stored["refused"] == "won" and stored["refused_for"] == C
