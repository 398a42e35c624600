"""race: the same data and budget for several methods, and one table at the end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from lab import spec
from lab.cli import follow, hub_data
from lab.cli.console import Output, console, loss, say, table
from lab.compare import race
from lab.compare.comparison import UNITS, compare
from lab.compare.race import Budget
from lab.errors import LabError
from lab.formatting import count, duration, size
from lab.runs.status import status


def add(verb: Any) -> None:
    sub = verb("race", run, "compare several methods on the same data and budget")
    sub.add_argument("spec", metavar="SPEC.json")
    sub.add_argument("--methods", required=True, metavar="A,B,C", help="the methods to race")
    sub.add_argument(
        "--budget",
        metavar="AXIS=NUMBER",
        help="what each run may use: tokens, seconds, flops or steps; else what the spec says",
    )
    sub.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each method")
    sub.add_argument("--wait", action="store_true", help="wait until all have ended, then compare")
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="settings",
        help="change one field for all; may be repeated",
    )


def run(arguments: argparse.Namespace) -> Output:
    quiet = arguments.json
    value = spec.override(spec.load(Path(arguments.spec)), arguments.settings)
    budget = Budget.parse(arguments.budget) if arguments.budget else None
    if arguments.seeds < 1:
        raise LabError(f"--seeds is {arguments.seeds}.", "Give 1 or more.")
    names = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    hub_data.fetch_missing(value)
    specs, notes = race.race_specs(value, names, budget)
    checked_runs = race.check(specs, arguments.seeds)
    race_id, runs = race.start(checked_runs)
    if not quiet:
        console.print(f"[bold]{race_id}[/bold]: {len(runs)} runs in the queue")
        for note in notes:
            console.print(escape(note))
    if not arguments.wait:
        started = [
            {
                "id": started_run.id,
                "method": checked.spec.method["name"],
                "seed": checked.spec.train.seed,
                "state": status(started_run).state,
            }
            for started_run, checked in zip(runs, checked_runs, strict=True)
        ]

        def show_started() -> None:
            rows = [[run["method"], str(run["seed"]), run["id"]] for run in started]
            table("Runs", ["method", "seed", "id"], rows)
            console.print(f"When they have ended: python -m lab compare {race_id}")

        return Output({"race": race_id, "notes": notes, "runs": started}, show_started)
    failed = 0
    for started_run, checked in zip(runs, checked_runs, strict=True):
        ended = follow.follow(started_run, checked.spec.name, quiet=quiet)
        if ended.state in ("failed", "crashed"):
            failed += 1
            say(f"{started_run.id} {ended.state}: {ended.message} {ended.hint}".strip(), error=True)
    answer = compare(runs, race.axis_of(runs[0]))

    def display() -> None:
        show(answer)

    return Output({"race": race_id, "notes": notes} | answer, display, 1 if failed else 0)


def show(answer: dict[str, Any]) -> None:
    """The race as a table: one row a run, the lowest evaluation loss first."""
    at = f"{answer['at']:,.0f} {UNITS[answer['by']]}"

    def placed(run: dict[str, Any]) -> tuple[bool, float]:
        value = run["at"]["eval_loss"]
        return value is None, value or 0.0

    has_seeds = len({run["seed"] for run in answer["runs"]}) > 1
    all_done = all(run["state"] == "done" for run in answer["runs"])
    rows = [
        [
            run["method"] + (f" {run['seed']}" if has_seeds else ""),
            count(run["trainable"]),
            loss(run["at"]["eval_loss"]),
            loss(run["train_loss"]["last"]),
            duration(run["seconds"]),
            f"{run['tokens_per_s']:.0f}" if run["tokens_per_s"] else "–",
            size(run["peak_bytes"]),
            size(run["artifact_bytes"]),
            *([] if all_done else [run["state"]]),
        ]
        for run in sorted(answer["runs"], key=placed)
    ]
    columns = ["method" + " and seed" * has_seeds, "trains", "eval", "train", "time", "tok/s"]
    columns += ["peak", "result", *([] if all_done else ["state"])]
    table(f"Race: losses after {at}", columns, rows, right="lrrrrrrrl")
    base = {loss(run["eval_loss"]["base"]) for run in answer["runs"]}
    console.print(f"Evaluation loss of the base: {', '.join(sorted(base))}")
    for text in answer["unequal"]:
        console.print(f"[yellow]Not equal:[/yellow] {escape(text)}")
