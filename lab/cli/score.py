"""score: how well models answer a set, the base first."""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from lab.chat.models import parse
from lab.cli import downloads
from lab.cli.console import Output, console, say, table
from lab.data import catalog
from lab.errors import LabError
from lab.evals import score as scoring

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

    answer = scoring.score(names, arguments.dataset, arguments.most, arguments.pattern, tell)
    answer["extremes"], answer["differences"] = {}, []
    main, figures = answer["main"], {}
    for each in answer["models"]:
        figures[each["model"]] = [row["figures"] for row in each["answers"]]
        best, worst = scoring.extremes(figures[each["model"]], main)
        answer["extremes"][each["model"]] = {"best": best, "worst": worst}
    for pair in itertools.combinations(figures, 2):
        right = [[row[main] >= 1.0 for row in figures[name]] for name in pair]
        only_first, only_second = scoring.only_right(*right)
        answer["differences"].append(
            {"models": list(pair), "first": only_first, "second": only_second}
        )
    return Output(answer, lambda: _show(answer))


def _show(answer: dict[str, Any]) -> None:
    models = answer["models"]
    names = list(models[0]["figures"])
    table(
        f"{answer['set']}: {len(answer['rows'])} questions",
        ["model", *(scoring.TITLES[name] for name in names)],
        [[each["model"], *(f"{each['figures'][name]:.3f}" for name in names)] for each in models],
        right="l" + "r" * len(names),
    )
    for each in answer["differences"]:
        first, second = each["models"]
        say(f"{first} right and {second} wrong: {len(each['first'])}; the other way round: "
            f"{len(each['second'])}.")  # fmt: skip
    last = models[-1]
    for title, indices in answer["extremes"][last["model"]].items():
        say(f"\n{title.capitalize()} answers of {last['model']}:")
        for index in indices:
            row, model_answer = answer["rows"][index], last["answers"][index]
            say(f"  {_short(row['prompt'])}")
            say(f"    right: {_short(row['reference'])}")
            say(f"    said:  {_short(model_answer['text'] or model_answer['likeliest'])}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_ANSWER_CHARS else f"{line[:MAX_ANSWER_CHARS]} …"
