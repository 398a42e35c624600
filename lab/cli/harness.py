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
    return Output(answer, lambda: _show_task(answer) if is_task else _show_set(answer))


def _show_set(answer: dict[str, Any]) -> None:
    table(
        f"lm-eval {answer['version']} on {answer['set']}: {answer['rows']} questions",
        ["model", "accuracy (acc_norm)", "centred"],
        [
            [each["model"], f"{each['accuracy']:.3f}", f"{each['centred']:.3f}"]
            for each in answer["models"]
        ],
        right="lrr",
    )


def _show_task(answer: dict[str, Any]) -> None:
    """The figures with their standard errors."""
    names = list(answer["models"][0]["figures"])
    rows = []
    for each in answer["models"]:
        cells = [each["model"]]
        for name in names:
            error = each["errors"].get(name)
            spread = "" if error is None else f" ± {error:.3f}"
            cells.append(f"{each['figures'][name]:.3f}{spread}")
        rows.append(cells)
    shots = f", {answer['shots']} examples in each prompt" if answer["shots"] else ""
    table(
        f"lm-eval {answer['version']}, task {answer['task']} on {answer['dataset']}: "
        f"{answer['rows']} rows{shots}",
        ["model", *names],
        rows,
        right="l" + "r" * len(names),
    )
