"""evidence: what races have shown, here and on the machines that the lab was tested on."""

from __future__ import annotations

import argparse
from typing import Any

from lab.cli.console import Output, console, say, table
from lab.compare import evidence, race_outcome


def add(verb: Any) -> None:
    verb("evidence", run, "what races have shown of the claims, with machine, date and versions")


def run(arguments: argparse.Namespace) -> Output:
    race_outcome.keep_ended()
    known = evidence.all_evidence()

    def display() -> None:
        if not known:
            say("No race has been evaluated yet.")
        for each in known:
            rows = [
                [claim, verdict.verdict, verdict.sentence]
                for claim, verdict in each.verdicts.items()
            ]
            table(f"{each.title} · {each.date}", ["claim", "verdict", "measured"], rows)
            say(each.outcome)
            say(f"{each.machine} · {each.minutes:.0f} min · code {each.code}")
            console.print()

    return Output({"evidence": [each.to_json() for each in known]}, display)
