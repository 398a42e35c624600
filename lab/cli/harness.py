"""harness: the score of EleutherAI's lm-evaluation-harness beside ours."""

from __future__ import annotations

import argparse
from typing import Any

from lab.chat.models import parse
from lab.cli import downloads
from lab.cli.console import Output, result_of, table
from lab.cli.score import add_questions, check_questions
from lab.errors import LabError
from lab.evals import lm_eval_scores


def add(verb: Any) -> None:
    sub = verb("harness", run, "what the lm-evaluation-harness scores models on a set with options")
    add_questions(sub)


def run(arguments: argparse.Namespace) -> Output:
    check_questions(arguments)
    names = [parse(name) for name in arguments.models]
    lm_eval_scores.check(names, arguments.dataset, arguments.most)
    downloads.fetch_models(names)
    lm_eval_scores.start(arguments.models, arguments.dataset, arguments.most)
    file = lm_eval_scores.job_file()
    interrupted = LabError("The scoring was interrupted.", f"See {file.with_suffix('.log')}.")
    answer = result_of(file, arguments, interrupted)

    def display() -> None:
        table(
            f"lm-eval {answer['version']} on {answer['set']}: {answer['rows']} questions",
            ["model", "accuracy (acc_norm)", "centred"],
            [
                [each["model"], f"{each['accuracy']:.3f}", f"{each['centred']:.3f}"]
                for each in answer["models"]
            ],
            right="lrr",
        )

    return Output(answer, display)
