"""compare: a table of final figures."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape

from lab import paths
from lab.cli.console import Output, console, loss, table
from lab.cli.race import show as show_race
from lab.compare import race
from lab.compare.comparison import AXES, UNITS, compare
from lab.errors import LabError
from lab.formatting import count, duration, size


def add(verb: Any) -> None:
    sub = verb("compare", run, "final figures of runs, side by side")
    sub.add_argument("runs", nargs="+", metavar="RUN", help="runs, or one race")
    sub.add_argument(
        "--by",
        choices=list(AXES),
        help="equal terms: the axis; a race's own budget, or steps, if left out",
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

    def display() -> None:
        if is_race:
            show_race(answer)
        else:
            show(answer)

    return Output(answer, display)


def show(answer: dict[str, Any]) -> None:
    """The comparison as a table: one column a run."""
    rows = answer["runs"]
    at = f"{answer['at']:,.0f} {UNITS[answer['by']]}"

    def line(title: str, values: list[str]) -> list[str]:
        return [title, *values]

    table(
        "Comparison",
        ["", *[escape(f"{one['name'] or one['method']}") for one in rows]],
        [
            line("method", [one["method"] for one in rows]),
            line("state", [one["state"] for one in rows]),
            line("trains", [f"{count(r['trainable'])} of {count(r['parameters'])}" for r in rows]),
            line("evaluation loss, base", [loss(one["eval_loss"]["base"]) for one in rows]),
            line("evaluation loss, end", [loss(one["eval_loss"]["final"]) for one in rows]),
            line(f"evaluation loss at {at}", [loss(one["at"]["eval_loss"]) for one in rows]),
            line("train loss, last step", [loss(one["train_loss"]["last"]) for one in rows]),
            line("steps", [f"{one['steps']:,}" for one in rows]),
            line("tokens", [f"{one['tokens']:,}" for one in rows]),
            line("training time", [duration(one["seconds"]) for one in rows]),
            line(
                "tokens/s",
                [f"{r['tokens_per_s']:.0f}" if r["tokens_per_s"] else "–" for r in rows],
            ),
            line("peak memory", [size(one["peak_bytes"]) for one in rows]),
            line("size of the result", [size(one["artifact_bytes"]) for one in rows]),
        ],
        right="l" + "r" * len(rows),
    )
    for text in answer["unequal"]:
        console.print(f"[yellow]Not equal:[/yellow] {escape(text)}")
    if not answer["unequal"]:
        console.print("[green]Equal terms:[/green] same model, data, held-out rows and tokens.")
