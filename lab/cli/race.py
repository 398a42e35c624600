"""race: the same data and budget for several methods, and one table at the end."""

from __future__ import annotations

import argparse
import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from lab import spec
from lab.cli import follow, hub_data
from lab.cli.console import Output, console, loss, rate, say, table
from lab.cli.runs import add_set
from lab.compare import race, race_file, race_outcome, race_scores, race_start, ready_races
from lab.compare.comparison import Comparison, compare
from lab.compare.equal_terms import EqualTerms
from lab.compare.race import Budget
from lab.compare.race_file import PROBE
from lab.compare.race_start import PlannedRun, RaceForecast, RaceTerms
from lab.compare.ready_races import ReadyRace
from lab.errors import LabError
from lab.formatting import count, duration, quantity, size
from lab.paths import RunDir
from lab.runs import ladder
from lab.runs.status import status


def add(verb: Any) -> None:
    sub = verb("race", run, "compare several methods on the same data and budget")
    sub.add_argument("spec", nargs="?", metavar="SPEC.json")
    sub.add_argument("--ready", metavar="NAME", help="a race that comes with the lab")
    sub.add_argument(
        "--methods",
        default="",
        metavar="A,B,C",
        help="the methods to race, unless the file lists its contestants",
    )
    sub.add_argument(
        "--budget",
        metavar="AXIS=NUMBER",
        help="what each run may use: tokens, seconds, flops or steps; else what the spec says",
    )
    sub.add_argument("--seeds", type=int, metavar="N", help="runs of each method, by default 1")
    sub.add_argument(
        "--ladder",
        type=int,
        metavar="N",
        help="N short runs a method at different learning rates choose the rate that is trained "
        "beside the method's default: 3 or 5",
    )
    sub.add_argument(
        "--plan", action="store_true", help="say what the race would take, and start nothing"
    )
    sub.add_argument("--wait", action="store_true", help="wait until all have ended, then compare")
    add_set(sub, "change one field for all; may be repeated")


def run(arguments: argparse.Namespace) -> Output:
    quiet = arguments.json
    value, ready = _value(arguments)
    text = arguments.budget or (ready.budget if ready else "")
    budget = Budget.parse(text) if text else None
    seeds = arguments.seeds if arguments.seeds is not None else ready.seeds if ready else 1
    rungs = arguments.ladder if arguments.ladder is not None else ready.ladder if ready else 0
    if seeds < 1:
        raise LabError(f"--seeds is {seeds}.", "Give 1 or more.")
    names = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    race_start.check_number(1, 1, rungs)
    hub_data.fetch_missing(value)
    racing = race.contestants(value, names)
    specs, notes = race.contestant_specs(value, racing, budget)
    planned = race_start.check(specs, seeds, rungs)
    unfair = race_start.unfairness(budget, {each.contestant: each.checked for each in planned})
    notes += [unfair] if unfair else []
    total = race_start.forecast(planned)
    if not quiet:
        _show_plan(total, notes)
    if arguments.plan:
        return Output({"notes": notes, "forecast": asdict(total)}, lambda: None)
    race_id, runs = race_start.start(
        planned,
        RaceTerms(
            title=ready.title if ready else str(value.get("name", "")),
            question=ready.question if ready else "",
            ready=ready.name if ready else "",
            budget=budget,
            ladder=rungs,
            contestants=tuple(racing),
            notes=tuple(notes),
            tests=ready.tests if ready else (),
            score_set=ready.score_set if ready else "",
            score_most=ready.score_most if ready else 50,
            spec=value,
        ),
    )
    if not quiet:
        console.print(f"[bold]{race_id}[/bold]: {quantity(len(runs), 'run')} in the queue")
    if not arguments.wait:
        return _started(race_id, notes, planned, runs, total)
    failed = 0
    for started_run, each in zip(runs, planned, strict=True):
        ended = follow.follow(started_run, each.spec.name, quiet=quiet)
        if ended.state in ("failed", "crashed"):
            failed += 1
            say(f"{started_run.id} {ended.state}: {ended.message} {ended.hint}".strip(), error=True)
    compared = [
        run
        for run, each in zip(runs, planned, strict=True)
        if each.role != PROBE and not ladder.is_needless(run)
    ]
    _score(race_id)
    return _result(race_id, compared, notes, failed)


def _value(arguments: argparse.Namespace) -> tuple[dict[str, Any], ReadyRace | None]:
    """(what the contestants share, the ready race). Raises LabError."""
    if (arguments.spec is None) == (arguments.ready is None):
        raise LabError(
            "A race needs a file or a ready race, and not both.",
            "Write race SPEC.json --methods A,B or race --ready NAME.",
        )
    if arguments.ready is None:
        value = spec.load(Path(arguments.spec))
        return spec.override(value, arguments.settings), None
    ready = ready_races.get(arguments.ready)
    value = copy.deepcopy(dict(ready.spec))
    if not arguments.methods:
        value["contestants"] = [asdict(contestant) for contestant in ready.contestants]
    return spec.override(value, arguments.settings), ready


def _show_plan(total: RaceForecast, notes: list[str]) -> None:
    about = "" if total.is_measured else "about "
    time = f"{about}{duration(total.seconds)}" if total.seconds is not None else "unknown time"
    console.print(
        f"{quantity(total.runs, 'run')}: {time}, {size(total.peak_bytes)} of memory at most, "
        f"{size(total.disk_bytes)} of disk"
    )
    for note in notes:
        console.print(escape(note))


def _started(
    race_id: str,
    notes: list[str],
    planned: list[PlannedRun],
    runs: list[RunDir],
    total: RaceForecast,
) -> Output:
    started = [
        {
            "id": run.id,
            "contestant": each.contestant,
            "method": each.spec.method["name"],
            "seed": each.seed,
            "role": each.role,
            "state": status(run).state,
        }
        for run, each in zip(runs, planned, strict=True)
    ]

    def display() -> None:
        rows = [[run["contestant"], run["role"], str(run["seed"]), run["id"]] for run in started]
        table("Runs", ["contestant", "for", "seed", "id"], rows)
        console.print(f"When they have ended: python -m lab compare {race_id}")

    answer = {"race": race_id, "notes": notes, "forecast": asdict(total), "runs": started}
    return Output(answer, display)


def _score(race_id: str) -> None:
    """Score the results where the race asks for it, and keep what the race has shown."""
    stored = race_file.load(race_id)
    if race_scores.is_due(stored):
        say(f"Scoring on {stored.score_set} …", error=True)
        race_scores.measure(stored)
    race_outcome.keep_ended()


def _result(race_id: str, runs: list[RunDir], notes: list[str], failed: int) -> Output:
    compared = compare(runs, race.axis_of(runs[0]))
    answer = {"race": race_id, "notes": notes} | compared.to_json()
    return Output(answer, lambda: show(compared), 1 if failed else 0)


def show(comparison: Comparison) -> None:
    """The race as a table: one row a run, the lowest evaluation loss first."""
    runs = sorted(
        comparison.runs, key=lambda run: (run.common_loss is None, run.common_loss or 0.0)
    )
    has_seeds = len({run.figures.seed for run in runs}) > 1
    all_done = all(run.state == "done" for run in runs)
    rows = [
        [
            run.method + (f" {run.figures.seed}" if has_seeds else ""),
            count(run.figures.trainable),
            loss(run.common_loss),
            loss(run.figures.train_loss),
            duration(run.figures.seconds),
            rate(run.figures.tokens_per_s),
            size(run.figures.peak_bytes),
            size(run.figures.artifact_bytes),
            *([] if all_done else [run.state]),
        ]
        for run in runs
    ]
    columns = [
        "method" + " and seed" * has_seeds,
        "trainable",
        "eval loss",
        "train loss",
        "time",
        "tokens/s",
    ]
    columns += ["peak memory", "model size", *([] if all_done else ["state"])]
    table(f"Race: losses after {comparison.common_in_words}", columns, rows, right="lrrrrrrrl")
    base = {loss(run.figures.base_loss) for run in runs}
    console.print(f"Evaluation loss of the base: {', '.join(sorted(base))}")
    show_terms(comparison.terms)


def show_terms(terms: EqualTerms) -> None:
    """What forbids a comparison, and what a reader should know."""
    for text in terms.unequal:
        console.print(f"[yellow]Not comparable:[/yellow] {escape(text)}")
    for text in terms.remarks:
        console.print(f"[yellow]Remark:[/yellow] {escape(text)}")
