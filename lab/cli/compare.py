"""compare: a table of final figures."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.markup import escape

from lab import paths
from lab.atomic_files import write_atomic
from lab.cli.console import Output, console, loss, rate, say, table
from lab.cli.race import show as show_race
from lab.cli.race import show_terms
from lab.compare import race, scored_rows
from lab.compare.comparison import AXES, Comparison, compare
from lab.errors import LabError
from lab.evals.score import TITLES
from lab.formatting import count, duration, quantity, size
from lab.paths import RunDir
from lab.schema import quote


def add(verb: Any) -> None:
    sub = verb("compare", run, "final figures of runs, side by side")
    sub.add_argument("runs", nargs="+", metavar="RUN", help="runs, or one race")
    sub.add_argument(
        "--by",
        choices=list(AXES),
        help="equal terms: the axis; a race's own budget, or steps, if left out",
    )
    sub.add_argument(
        "--html", metavar="FILE", help="write the report that Compare exports: opens offline"
    )


def run(arguments: argparse.Namespace) -> Output:
    if len(set(arguments.runs)) < len(arguments.runs):
        raise LabError("A run is named twice.", "Name each run once.")
    is_race = len(arguments.runs) == 1 and arguments.runs[0].startswith("race-")
    if is_race:
        runs = race.runs_of(arguments.runs[0])
    else:
        runs = [paths.run_dir(name) for name in arguments.runs]
    by = race.axis_of(runs[0]) if is_race else "step"
    comparison = compare(runs, arguments.by or by)
    report = _write_report(Path(arguments.html), runs) if arguments.html else ""

    def display() -> None:
        if is_race:
            show_race(comparison)
        else:
            show(comparison)
        show_scores(comparison)
        if report:
            console.print(f"Report: {escape(report)}", soft_wrap=True)

    return Output(comparison.to_json() | ({"html": report} if report else {}), display)


def _write_report(file: Path, runs: list[RunDir]) -> str:
    """Its path. The charts are those of the pages, so that a process of theirs draws them."""
    if file.exists():
        raise LabError(f"'{quote(str(file))}' exists.", "Choose another name.")
    if not file.absolute().parent.is_dir():
        raise LabError(f"'{quote(str(file.parent))}' is no folder.", "Make it first.")
    command = [sys.executable, "-m", "lab.ui.compare_export", *(run.id for run in runs)]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise LabError(f"The report was not written: {quote(reason)}.", "Look at the runs first.")
    write_atomic(file, done.stdout.decode("utf-8"))
    return str(file)


def show(comparison: Comparison) -> None:
    """The comparison as a table: one column a run."""
    runs = comparison.runs
    figures = [run.figures for run in runs]
    rows = [
        ["method", *(run.method for run in runs)],
        ["state", *(run.state for run in runs)],
        ["trainable parameters",
         *(f"{count(each.trainable)} of {count(each.parameters)}" for each in figures)],
        ["evaluation loss, base model", *(loss(each.base_loss) for each in figures)],
        ["evaluation loss, final", *(loss(each.loss) for each in figures)],
        [f"evaluation loss at {comparison.common_in_words}",
         *(loss(run.common_loss) for run in runs)],
        ["train loss, last step", *(loss(each.train_loss) for each in figures)],
        ["steps", *(f"{each.steps:,}" for each in figures)],
        ["tokens", *(f"{each.tokens:,}" for each in figures)],
        ["training time", *(duration(each.seconds) for each in figures)],
        ["tokens/s", *(rate(each.tokens_per_s) for each in figures)],
        ["peak memory", *(size(each.peak_bytes) for each in figures)],
        ["size of the result", *(size(each.artifact_bytes) for each in figures)],
    ]  # fmt: skip
    names = [escape(run.name or run.method) for run in runs]
    table("Comparison", ["", *names], rows, right="l" + "r" * len(runs))
    show_verdict(comparison)


def show_scores(comparison: Comparison) -> None:
    """Of every set that the runs were scored on: the figures, and on which rows two differ."""
    names = {f"run:{run.figures.run.id}": run.name or run.figures.run.id for run in comparison.runs}
    for scored in comparison.scores:
        keys = scored.figures
        rows = [
            [names.get(model, "base model"),
             *(score_text(scored.model(model).figures.get(key)) for key in keys)]
            for model in scored.models
        ]  # fmt: skip
        questions = quantity(len(scored.sheet.questions), "question")
        title = f"Scores on {escape(scored.sheet.dataset)}: {questions}"
        table(title, ["", *(TITLES[key] for key in keys)], rows, right="l" + "r" * len(keys))
        for pair in scored_rows.differences(scored):
            say(pair.in_words(*(names.get(each, "The base") for each in (pair.first, pair.second))))


def score_text(value: float | None) -> str:
    """A model that was scored before a figure was there has none."""
    return "–" if value is None else f"{value:.3f}"


def show_verdict(comparison: Comparison) -> None:
    """The verdict, and below it what makes the runs unequal."""
    verdict = comparison.verdict
    console.print(f"[bold]{escape(verdict.headline)}[/bold]")
    if verdict.detail:
        console.print(escape(verdict.detail))
    if verdict.badges:
        console.print(escape(" · ".join(badge.text for badge in verdict.badges)))
    show_terms(comparison.terms)
