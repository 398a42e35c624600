"""harness: the score of EleutherAI's lm-evaluation-harness beside ours."""

from __future__ import annotations

import argparse
from typing import Any

from lab import background_job
from lab.chat.models import parse
from lab.cli import downloads
from lab.cli.console import Output, say, table
from lab.data import catalog
from lab.errors import LabError
from lab.evals import lm_eval_scores, score


def add(verb: Any) -> None:
    sub = verb("harness", run, "what the lm-evaluation-harness scores models on a set with options")
    sub.add_argument("models", nargs="+", metavar="MODEL", help="run:ID, run:ID@STEP or base:ID")
    sub.add_argument("--set", required=True, dest="dataset", metavar="SET", help="a dataset")
    sub.add_argument(
        "--most",
        type=int,
        default=score.MAX_QUESTIONS,
        metavar="N",
        help="questions that are asked",
    )


def run(arguments: argparse.Namespace) -> Output:
    if arguments.most < 1:
        raise LabError(f"--most is {arguments.most}.", "Give 1 or more.")
    catalog.resolve(arguments.dataset)
    names = [parse(name) for name in arguments.models]
    lm_eval_scores.check(names, arguments.dataset, arguments.most)
    downloads.fetch_models(names)
    lm_eval_scores.start(arguments.models, arguments.dataset, arguments.most)
    job = background_job.wait(
        lm_eval_scores.job_file(),
        lambda phase: None if arguments.json else say(phase, error=True),
    )
    if job.finish != "done":
        raise LabError(
            job.error or "The scoring was interrupted.",
            job.hint or f"See {lm_eval_scores.job_file().with_suffix('.log')}.",
        )
    answer = dict(job.result)

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
