"""votes: what a blind vote shows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lab.cli.console import Output, say
from lab.compare import preference, votes
from lab.compare.vote_sentences import sentences
from lab.errors import LabError
from lab.formatting import quantity
from lab.schema import quote


def add(verb: Any) -> None:
    sub = verb("votes", run, "the outcome of a blind vote: who is preferred, and how sure that is")
    sub.add_argument("vote", metavar="FILE|SET", help="a blind vote's id, or its JSON file")
    sub.add_argument(
        "--models", metavar="A,B", default="",
        help="compare these of its models alone: their names or titles, with commas between",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> Output:
    session = _read(arguments.vote)
    models = [_model(name.strip(), session) for name in arguments.models.split(",") if name.strip()]
    result = preference.outcome(session, models or None)
    lines = sentences(result, lambda name: result.titles[name])
    return Output(result.to_json() | {"sentences": lines}, lambda: say("\n".join(lines)))


def _read(name: str) -> votes.VoteSession:
    """The blind vote of an id or a file. Raises LabError."""
    if votes.conversations.ID.fullmatch(name):
        return votes.read(name)
    return votes.read_file(Path(name))


def _model(name: str, session: votes.VoteSession) -> str:
    """The model of that name or title. Raises LabError for a title that two models have."""
    matches = [model for model in session.models if name in (model, session.titles.get(model))]
    if len(matches) > 1:
        raise LabError(
            f"'{quote(name)}' is the title of {quantity(len(matches), 'model')}.",
            f"Name them as: {', '.join(matches)}.",
        )
    return matches[0] if matches else name
