"""rank: which rank a run needed, and how alike the updates of two runs are."""

from __future__ import annotations

import argparse
import dataclasses

from rich.markup import escape

from lab import paths
from lab.cli.console import Output, console, say, table
from lab.errors import LabError
from lab.rank import measure, repair

MAX_SHOWN = 12  # matrices with the largest updates


def add(verb: object) -> None:
    sub = verb("rank", run, "the rank that a run's updates needed; the likeness of two runs'")  # type: ignore[operator]
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("other", metavar="RUN", nargs="?", help="compare the subspaces with this run")
    sub.add_argument(
        "--intruders", action="store_true",
        help="count intruder dimensions, too: singular vectors unlike all of the base's",
    )  # fmt: skip
    sub.add_argument(
        "--repair", action="store_true",
        help="reduce the intruder dimensions of a LoRA: a new result, with loss and forgetting "
        "before and after",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> Output:
    if arguments.repair:
        if arguments.other:
            raise LabError("--repair takes one run.", "Name the LoRA that is to be repaired.")
        return _repaired(
            repair.repair(paths.run_dir(arguments.run), lambda phase: say(phase, error=True))
        )
    other = paths.run_dir(arguments.other) if arguments.other else None
    report = measure.measure(paths.run_dir(arguments.run), other, intruders=arguments.intruders)

    def display() -> None:
        likeness = {name: f"{value:.2f}" for name, value in report.similarity.items()}
        largest = sorted(report.matrices, key=lambda matrix: -matrix.norm)[:MAX_SHOWN]
        rows = [
            [
                matrix.name.removesuffix(".weight"), f"{matrix.norm:.3g}",
                f"{matrix.needed} of {matrix.rank}", f"{matrix.effective:.1f}",
                f"{matrix.stable:.1f}", f"{matrix.condition:.3g}",
                "–" if matrix.intruders is None else str(matrix.intruders),
                likeness.get(matrix.name, "–"),
            ]
            for matrix in largest
        ]  # fmt: skip
        columns = ["matrix", "norm", "needed", "effective", "stable", "condition", "intruders"]
        table("Largest updates", [*columns, "likeness"], rows, right="lrrrrrrr")
        console.print(
            f"[bold]{escape(report.run)} needed r ≈ {report.needed} of {report.rank}[/bold] "
            "(95 % of the energy of all updates)."
        )

    return Output(dataclasses.asdict(report), display)


def _repaired(outcome: repair.Repair) -> Output:
    def display() -> None:
        figures = ("loss on held-out rows", "loss"), ("forgetting", "forgetting")
        rows = [
            [title, _figure(getattr(outcome.before, key)), _figure(getattr(outcome.after, key))]
            for title, key in figures
        ]
        table("Nats per token", ["", "before", "after"], rows, right="lrr")
        console.print(
            f"{outcome.intruders} intruder dimensions in {outcome.matrices} matrices reduced: "
            f"[bold]{escape(outcome.run)}[/bold]"
        )
        if outcome.note:
            console.print(f"The loss was not measured. {escape(outcome.note)}")

    return Output(dataclasses.asdict(outcome), display)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
