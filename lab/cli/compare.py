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
from lab.cli.console import Output, console, loss, say, table
from lab.cli.race import show as show_race
from lab.compare import race
from lab.compare.comparison import AXES, UNITS, compare
from lab.compare.scored_rows import RowDifference
from lab.errors import LabError
from lab.evals.score import TITLES
from lab.formatting import count, duration, size
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
    answer = compare(runs, arguments.by or by)
    if arguments.html:
        answer["html"] = _write_report(Path(arguments.html), runs)

    def display() -> None:
        if is_race:
            show_race(answer)
        else:
            show(answer)
        show_scores(answer)
        if arguments.html:
            console.print(f"Report: {escape(answer['html'])}", soft_wrap=True)

    return Output(answer, display)


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


def show(answer: dict[str, Any]) -> None:
    """The comparison as a table: one column a run."""
    rows = answer["runs"]
    at = f"{answer['at']:,.0f} {UNITS[answer['by']]}"

    def line(title: str, values: list[str]) -> list[str]:
        return [title, *values]

    table(
        "Comparison",
        ["", *[escape(f"{run['name'] or run['method']}") for run in rows]],
        [
            line("method", [run["method"] for run in rows]),
            line("state", [run["state"] for run in rows]),
            line(
                "trainable parameters",
                [f"{count(r['trainable'])} of {count(r['parameters'])}" for r in rows],
            ),
            line("evaluation loss, base model", [loss(run["eval_loss"]["base"]) for run in rows]),
            line("evaluation loss, final", [loss(run["eval_loss"]["final"]) for run in rows]),
            line(f"evaluation loss at {at}", [loss(run["at"]["eval_loss"]) for run in rows]),
            line("train loss, last step", [loss(run["train_loss"]["last"]) for run in rows]),
            line("steps", [f"{run['steps']:,}" for run in rows]),
            line("tokens", [f"{run['tokens']:,}" for run in rows]),
            line("training time", [duration(run["seconds"]) for run in rows]),
            line(
                "tokens/s",
                [f"{r['tokens_per_s']:.0f}" if r["tokens_per_s"] else "–" for r in rows],
            ),
            line("peak memory", [size(run["peak_bytes"]) for run in rows]),
            line("size of the result", [size(run["artifact_bytes"]) for run in rows]),
        ],
        right="l" + "r" * len(rows),
    )
    show_verdict(answer)


def show_scores(answer: dict[str, Any]) -> None:
    """Of every set that the runs were scored on: the figures, and on which rows two differ."""
    names = {f"run:{run['id']}": run["name"] or run["id"] for run in answer["runs"]}
    for scored in answer["scores"]:
        models = scored["models"]
        keys = [key for key in TITLES if key in models[0]["figures"]]
        rows = [
            [names.get(each["model"], "base model"),
             *(f"{each['figures'][key]:.3f}" for key in keys)]
            for each in models
        ]  # fmt: skip
        title = f"Scores on {escape(scored['set'])}: {len(scored['rows'])} questions"
        table(title, ["", *(TITLES[key] for key in keys)], rows, right="l" + "r" * len(keys))
        for each in scored["differences"]:
            pair = [names.get(each[side], "The base") for side in ("first", "second")]
            say(RowDifference(**each).in_words(*pair))


def show_verdict(answer: dict[str, Any]) -> None:
    """The verdict, and below it what makes the runs unequal."""
    verdict = answer["verdict"]
    console.print(f"[bold]{escape(verdict['headline'])}[/bold]")
    if verdict["detail"]:
        console.print(escape(verdict["detail"]))
    if verdict["badges"]:
        console.print(escape(" · ".join(badge["text"] for badge in verdict["badges"])))
    for text in answer["unequal"]:
        console.print(f"[yellow]Not comparable:[/yellow] {escape(text)}")
    for text in answer["remarks"]:
        console.print(f"[yellow]Remark:[/yellow] {escape(text)}")
