"""bench: measurements on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from lab.cli.show import console, print_json, table
from lab.errors import LabError
from lab.text import duration


def add(verb: Any) -> None:
    sub = verb("bench", run, "measure on this machine: faults")
    sub.add_argument("what", choices=["faults"])
    sub.add_argument("--kills", type=int, default=50, metavar="N")
    sub.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    from lab.bench.faults import faults, to_json

    if not 1 <= arguments.kills <= 100_000:
        raise LabError(f"--kills is {arguments.kills}.", "Give 1 to 100000.")
    quiet = arguments.json
    report = faults(
        arguments.kills, arguments.seed, lambda text: None if quiet else console.print(text)
    )
    if quiet:
        print_json(to_json(report))
        return 0 if report.is_clean else 1
    table(
        "SIGKILL at random moments",
        ["", ""],
        [
            ["kills", f"{report.kills} on {report.runs} runs"],
            ["by phase", ", ".join(f"{name} {count}" for name, count in report.phases.items())],
            ["resumed to the end", f"{report.resumed} of {report.runs}"],
            ["weights bit for bit equal", f"{report.equal} of {report.runs}"],
            ["one continuous history", f"{report.continuous} of {report.runs}"],
            ["most records lost by a kill", str(report.lost_records)],
            ["damaged checkpoints skipped", str(report.damaged_skipped)],
            ["time", duration(report.seconds)],
        ],
    )
    for failure in report.failures:
        console.print(f"[red]{failure}[/red]")
    return 0 if report.is_clean else 1
