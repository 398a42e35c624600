"""`python -m lab votes`: the outcome of a stored vote or of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import cli
from lab.atomic_files import write_json
from lab.compare import votes
from tests.compare.test_votes import A, B, C, answered, session_with


@pytest.fixture
def session(lab_home: Path) -> votes.VoteSession:
    """Nine votes of three models: B six times, A and C, and a tie."""
    stored = session_with(*(f"prompt {n}" for n in range(9)), models=(A, B, C), planned=9)
    with votes.change(stored.id) as changed:
        for place, vote in enumerate([B] * 6 + [A, C, votes.TIE]):
            changed.take_answers(place, answered("x", "y", "z", models=(A, B, C)))
            changed.vote(place, vote)
        changed.end()
    return votes.read(stored.id)


def test_a_vote_is_told_by_its_id_and_by_its_file(
    session: votes.VoteSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["votes", session.id]) == 0
    text = capsys.readouterr().out
    assert text.startswith("wren lora is preferred to SmolLM2-135M-Instruct with probability ")
    assert "Best of 3 in 8 decided votes: SmolLM2-135M-Instruct 1, wren lora 6, owl ia3 1." in text
    write_json(tmp_path / "vote.json", session.to_json())
    assert cli.main(["votes", str(tmp_path / "vote.json")]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("pair", [f"{A},{B}", "SmolLM2-135M-Instruct, wren lora"])
def test_two_of_its_models_are_compared_alone(
    session: votes.VoteSession, capsys: pytest.CaptureFixture[str], pair: str
) -> None:
    assert cli.main(["votes", session.id, "--models", pair, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["models"] == [A, B] and result["wins"] == {A: 1, B: 6}
    assert result["p"] == 0.125, "2 * (7 + 1) / 2**7"
    assert result["sentences"][0].startswith("No preference shown; about ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["20260101-000000-none"], "There is no blind vote"),
        (["missing.json"], "There is no file"),
        (["ID", "--models", f"{A},other"], "'other' is not in this vote"),
        (["ID", "--models", A], "Two or more different models"),
    ],
)
def test_what_is_no_vote_is_refused(
    session: votes.VoteSession, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    arguments = [session.id if argument == "ID" else argument for argument in arguments]
    assert cli.main(["votes", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_title_of_two_models_names_neither(
    session: votes.VoteSession, capsys: pytest.CaptureFixture[str]
) -> None:
    with votes.change(session.id) as changed:
        changed.titles[C] = changed.titles[B]
    pair = f"{A},{session.titles[B]}"
    assert cli.main(["votes", session.id, "--models", pair]) == 2
    message = capsys.readouterr().err
    assert "is the title of 2 models" in message and f"Name them as: {B}, {C}." in message
