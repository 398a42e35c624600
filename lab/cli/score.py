"""score: how well models answer a set, the base first."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import asdict, dataclass
from typing import Any

from lab.chat.models import parse
from lab.cli import downloads
from lab.cli.console import Output, console, say, table
from lab.data import catalog
from lab.errors import LabError
from lab.evals import score as scoring
from lab.evals.score_sheets import ScoreSheet
from lab.formatting import quantity

MAX_ANSWER_CHARS = 160  # characters of an answer that is shown


def add(verb: Any) -> None:
    sub = verb("score", run, "how well models answer a set: right, in form, and the likeliest")
    add_questions(sub)
    sub.add_argument("--pattern", default="", metavar="REGEX", help="the form of a right answer")


def add_questions(sub: Any) -> None:
    """Which models are asked, and how many questions of which set."""
    sub.add_argument("models", nargs="+", metavar="MODEL", help="run:ID, run:ID@STEP or base:ID")
    sub.add_argument("--set", required=True, dest="dataset", metavar="SET", help="a dataset")
    sub.add_argument(
        "--most",
        type=int,
        default=scoring.MAX_QUESTIONS,
        metavar="N",
        help="questions that are asked",
    )


def check_most(arguments: argparse.Namespace) -> None:
    """Raise LabError for less than one question."""
    if arguments.most < 1:
        raise LabError(f"--most is {arguments.most}.", "Give 1 or more.")


def check_questions(arguments: argparse.Namespace) -> None:
    """Raise LabError for a set or a number of questions that there is not."""
    check_most(arguments)
    catalog.resolve(arguments.dataset)


def run(arguments: argparse.Namespace) -> Output:
    check_questions(arguments)
    if len(set(arguments.models)) < len(arguments.models):
        raise LabError("A model is named twice.", "Name each model once.")
    names = [parse(name) for name in arguments.models]
    downloads.fetch_models(names)

    def tell(model: str, done: int, total: int) -> None:
        if not arguments.json and console.is_terminal and (done == total or done % 10 == 0):
            say(f"{model}: {done} of {total}", error=True)

    sheet = scoring.score(names, arguments.dataset, arguments.most, arguments.pattern, tell)
    extremes = {
        name: Extremes(*scoring.extremes([answer.figures for answer in model.answers], sheet.main))
        for name, model in sheet.models.items()
    }
    differences = []
    for pair in itertools.combinations(sheet.models, 2):
        right = [
            [sheet.is_right(name, index) for index in range(len(sheet.questions))] for name in pair
        ]
        differences.append(Difference(pair, *scoring.only_right(*right)))
    data = {
        "set": sheet.dataset,
        "kind": sheet.kind,
        "rows": [asdict(question) for question in sheet.questions],
        "models": [
            {
                "model": name,
                "figures": model.figures,
                "answers": [asdict(answer) for answer in model.answers],
            }
            for name, model in sheet.models.items()
        ],
        "main": sheet.main,
        "extremes": {name: asdict(each) for name, each in extremes.items()},
        "differences": [asdict(each) for each in differences],
    }
    return Output(data, lambda: _show(sheet, extremes, differences))


@dataclass(frozen=True)
class Extremes:
    """The questions that a model answers best, and those that it answers worst, by their index."""

    best: list[int]
    worst: list[int]


@dataclass(frozen=True)
class Difference:
    """The questions that only one of two models gets right, by their index."""

    models: tuple[str, str]
    first: list[int]
    second: list[int]


def _show(sheet: ScoreSheet, extremes: dict[str, Extremes], differences: list[Difference]) -> None:
    names = list(next(iter(sheet.models.values())).figures)
    table(
        f"{sheet.dataset}: {quantity(len(sheet.questions), 'question')}",
        ["model", *(scoring.TITLES[name] for name in names)],
        [
            [model, *(f"{scored.figures[name]:.3f}" for name in names)]
            for model, scored in sheet.models.items()
        ],
        right="l" + "r" * len(names),
    )
    for each in differences:
        first, second = each.models
        say(f"{first} right and {second} wrong: {len(each.first)}; the other way round: "
            f"{len(each.second)}.")  # fmt: skip
    last = list(sheet.models)[-1]
    for title, indices in (("Best", extremes[last].best), ("Worst", extremes[last].worst)):
        say(f"\n{title} answers of {last}:")
        for index in indices:
            question, answer = sheet.questions[index], sheet.models[last].answers[index]
            say(f"  {_short(question.prompt)}")
            say(f"    right: {_short(question.reference)}")
            say(f"    said:  {_short(answer.text or answer.likeliest)}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_ANSWER_CHARS else f"{line[:MAX_ANSWER_CHARS]} …"
