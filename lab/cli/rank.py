"""rank: which rank a run needed, and how alike the updates of two runs are."""

from __future__ import annotations

import argparse
import collections
import dataclasses

from rich.markup import escape

from lab import paths
from lab.cli.console import Output, console, say, table
from lab.errors import LabError
from lab.export import lora_form
from lab.formatting import quantity, size
from lab.rank import convert, measure, repair
from lab.rank.spectrum import ENERGY

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
        "--energy", type=float, default=ENERGY, metavar="SHARE",
        help="share of the energy that the needed rank keeps (default: 0.95)",
    )  # fmt: skip
    sub.add_argument(
        "--convert", action="store_true",
        help="a new result: a plain LoRA, each layer at the rank that keeps this energy, with the "
        "logits' difference and the loss before and after",
    )  # fmt: skip
    sub.add_argument(
        "--repair", action="store_true",
        help="reduce the intruder dimensions of a LoRA: a new result, with loss and forgetting "
        "before and after",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> Output:
    if problem := lora_form.energy_problem(arguments.energy):
        raise LabError(problem, "Take a share such as 0.95.")
    if arguments.repair or arguments.convert:
        if arguments.other or (arguments.repair and arguments.convert):
            raise LabError("--repair and --convert take one run each.", "Do one after the other.")
    if arguments.convert:
        result, energy = paths.run_dir(arguments.run), arguments.energy
        return _converted(convert.convert(result, energy, lambda phase: say(phase, error=True)))
    if arguments.repair:
        return _repaired(
            repair.repair(paths.run_dir(arguments.run), lambda phase: say(phase, error=True))
        )
    other = paths.run_dir(arguments.other) if arguments.other else None
    report = measure.measure(
        paths.run_dir(arguments.run), other, intruders=arguments.intruders, energy=arguments.energy
    )

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
            f"({100 * report.threshold:g} % of the energy of all updates)."
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
            f"{quantity(outcome.intruders, 'intruder dimension')} in "
            f"{quantity(outcome.matrices, 'matrix', 'matrices')} reduced: "
            f"[bold]{escape(outcome.run)}[/bold]"
        )
        if outcome.note:
            console.print(f"The loss was not measured. {escape(outcome.note)}")

    return Output(dataclasses.asdict(outcome), display)


def _converted(outcome: convert.Conversion) -> Output:
    def display() -> None:
        by_rank = collections.Counter(outcome.ranks.values())
        rows = [[str(rank), str(count)] for rank, count in sorted(by_rank.items())]
        table("Ranks", ["rank", "layers"], rows, right="rr")
        table(
            "What it costs",
            ["", "before", "after"],
            [
                [
                    "loss on held-out rows",
                    _figure(outcome.loss_before),
                    _figure(outcome.loss_after),
                ],
                ["bytes", size(outcome.bytes_before), size(outcome.bytes_after)],
            ],
            right="lrr",
        )
        console.print(
            f"{100 * outcome.energy:g} % of the energy of each layer, "
            f"{100 * outcome.fidelity:.1f} % of the length of all updates. Largest logit "
            f"difference {outcome.largest_difference:.2g}, {outcome.share_of_spread:.1e} of the "
            f"logits' spread; same top token {100 * outcome.same_top:.1f} %; KL {outcome.kl:.1e}."
        )
        console.print(f"[bold]{escape(outcome.run)}[/bold]")
        if outcome.base_note:
            console.print(f"[yellow]{escape(outcome.base_note)}[/]", soft_wrap=True)
        if outcome.note:
            console.print(f"The loss was not measured. {escape(outcome.note)}")

    return Output(dataclasses.asdict(outcome), display)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
