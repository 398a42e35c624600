"""rank: which rank a run needed, and how alike the updates of two runs are."""

from __future__ import annotations

import argparse
import dataclasses

from rich.markup import escape

from lab import paths
from lab.cli.console import Output, console, table
from lab.rank import measure

MAX_SHOWN = 12  # matrices with the largest updates


def add(verb: object) -> None:
    sub = verb("rank", run, "the rank that a run's updates needed; the likeness of two runs'")  # type: ignore[operator]
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("other", metavar="RUN", nargs="?", help="compare the subspaces with this run")
    sub.add_argument(
        "--intruders", action="store_true",
        help="count intruder dimensions, too: singular vectors unlike all of the base's",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> Output:
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
