"""harness: the score of EleutherAI's lm-evaluation-harness beside ours."""

from __future__ import annotations

import argparse
import re
from typing import Any

from lab.chat.models import ModelRef, parse
from lab.cli import downloads
from lab.cli.console import Output, result_of, table
from lab.cli.score import add_questions, check_questions
from lab.errors import LabError
from lab.evals import lm_eval_scores
from lab.methods.parts import adapter_files
from lab.models import catalog

TASK_NAME = re.compile(r"[A-Za-z0-9_]+", re.ASCII)  # no file, no Hub ID and nothing with a colon


def add(verb: Any) -> None:
    sub = verb("harness", run, "what the lm-evaluation-harness scores models on a set with options")
    add_questions(sub)


def task_command(named: ModelRef, task: str) -> str:
    """The harness's own command for one of its tasks, with the files of this model."""
    base = catalog.resolve(named.base).location
    model = f"pretrained={base}"
    if named.run is not None and named.step is None:
        folder = named.run.artifact.resolve()
        if (folder / adapter_files.CONFIG).is_file():
            model += f",peft={folder}"
        elif (folder / "config.json").is_file():
            model = f"pretrained={folder}"
        else:
            merge = f"python -m lab merge {named.run.id} --out FOLDER"
            return f"{merge}, then lm_eval --model hf --model_args pretrained=FOLDER --tasks {task}"
    return f"lm_eval --model hf --model_args {model} --tasks {task}"


def run(arguments: argparse.Namespace) -> Output:
    names = [parse(name) for name in arguments.models]
    if TASK_NAME.fullmatch(arguments.dataset):
        raise LabError(
            f"'{arguments.dataset}' is not a dataset: tasks of the harness, which fetch their own "
            "data, are not run here.",
            f"Where there is a network: {task_command(names[-1], arguments.dataset)}",
        )
    check_questions(arguments)
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
