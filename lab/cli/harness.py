"""harness: scores of EleutherAI's lm-evaluation-harness, on sets of the lab or its own tasks."""

from __future__ import annotations

import argparse
from typing import Any

from lab.chat.models import parse
from lab.cli import downloads
from lab.cli.console import Output, result_of, table
from lab.cli.score import add_questions, check_most, check_questions
from lab.errors import LabError
from lab.evals import harness_tasks, lm_eval_scores
from lab.evals.harness_tasks import TaskScores
from lab.evals.lm_eval_scores import SetScores
from lab.formatting import quantity


def add(verb: Any) -> None:
    sub = verb("harness", run, "what the lm-evaluation-harness scores models on a set or its task")
    add_questions(sub)


def run(arguments: argparse.Namespace) -> Output:
    names = [parse(name) for name in arguments.models]
    is_task = harness_tasks.is_name(arguments.dataset)
    if is_task:
        check_most(arguments)
        lm_eval_scores.check_installed()
    else:
        check_questions(arguments)
        lm_eval_scores.check(names, arguments.dataset, arguments.most)
    downloads.fetch_models(names)
    task = arguments.dataset if is_task else ""
    lm_eval_scores.start(arguments.models, arguments.dataset, arguments.most, task)
    file = lm_eval_scores.job_file()
    interrupted = LabError("The scoring was interrupted.", f"See {file.with_suffix('.log')}.")
    answer = result_of(file, arguments, interrupted)

    def display() -> None:
        if is_task:
            _show_task(TaskScores.from_json(answer))
        else:
            _show_set(SetScores.from_json(answer))

    return Output(answer, display)


def _show_set(scores: SetScores) -> None:
    table(
        f"lm-eval {scores.version} on {scores.set}: {quantity(scores.rows, 'question')}",
        ["model", "accuracy (acc_norm)", "centred"],
        [[each.model, f"{each.accuracy:.3f}", f"{each.centred:.3f}"] for each in scores.models],
        right="lrr",
    )


def _show_task(scores: TaskScores) -> None:
    """The figures with their standard errors."""
    names = list(scores.models[0].figures)
    rows = []
    for each in scores.models:
        cells = [each.model]
        for name in names:
            error = each.errors.get(name)
            spread = "" if error is None else f" ± {error:.3f}"
            cells.append(f"{each.figures[name]:.3f}{spread}")
        rows.append(cells)
    shots = f", {quantity(scores.shots, 'example')} in each prompt" if scores.shots else ""
    table(
        f"lm-eval {scores.version}, task {scores.task} on {scores.dataset}: "
        f"{quantity(scores.rows, 'row')}{shots}",
        ["model", *names],
        rows,
        right="l" + "r" * len(names),
    )
