"""advise, costs and claims: which method, what it costs, and what published claims are worth."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lab import json_text
from lab.advise import case as cases
from lab.advise import claims, costs, findings, recommend
from lab.advise.case import AdviceCase
from lab.atomic_files import load_json
from lab.cli.console import Output, console, say, table
from lab.errors import LabError
from lab.formatting import quantity

MAX_CASE_BYTES = 100_000  # bytes of its JSON


def add(verb: Any) -> None:
    sub = verb("advise", advise, "which method: published rule sets, and the lab's recommendation")
    _add_case(sub)
    sub = verb(
        "costs", show_costs, "what training, storage and serving cost, beside printed figures"
    )
    _add_case(sub)
    sub = verb("claims", show_claims, "what articles claim, beside what this lab finds")
    sub.add_argument("id", nargs="?", help="of one claim, such as C3; all without it")


def _add_case(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "case",
        nargs="?",
        metavar="CASE.json",
        help='JSON such as {"goal": "behaviour", "parameters": 7e9, "gpu_gb": 24}, or - for stdin; '
        "without it, the default case on this machine",
    )


def _case_of(arguments: argparse.Namespace) -> AdviceCase:
    """Raises LabError."""
    if arguments.case is None:
        return cases.sized(cases.parse({}))
    if arguments.case == "-":
        try:
            value = json_text.parse(sys.stdin.buffer.read(MAX_CASE_BYTES + 1)[:MAX_CASE_BYTES])
        except json_text.BadJson as error:
            raise LabError(f"The input is not JSON: {error}.", "Give one JSON object.") from None
    else:
        value = load_json(Path(arguments.case), MAX_CASE_BYTES)
    return cases.sized(cases.parse(value))


def advise(arguments: argparse.Namespace) -> Output:
    advice = recommend.recommend(_case_of(arguments))

    def display() -> None:
        rows = [
            [vote.rules.claim, vote.answer.answer, vote.answer.reason, vote.rules.source]
            for vote in advice.votes
        ]
        table("Published rule sets", ["claim", "answer", "reason", "source"], rows)
        say(f"\nRecommended: {advice.chosen.approach.in_words} ({advice.method})")
        for reason in advice.reasons:
            say(f"  {reason.text}")
        say(f"What would change it: {advice.would_change}.")
        say("Settings for New run, or for 'python -m lab start':")
        say(json.dumps(advice.to_json()["recommendation"]["settings"], indent=1))

    return Output(advice.to_json(), display)


def show_costs(arguments: argparse.Namespace) -> Output:
    bill = costs.bill(recommend.recommend(_case_of(arguments)))
    printed = costs.printed_figures()

    def display() -> None:
        table("Costs", ["", "", "how"], [[item.title, item.amount, item.how] for item in bill],
              right="lr")  # fmt: skip
        rows = [
            [row.claim, row.title, row.printed, f"{row.here} {row.unit}", row.off_by, row.formula]
            for row in printed
        ]
        table(
            "Printed figures, computed again", ["claim", "what", "printed", "here", "", "how"], rows
        )
        say(f"Prices of {costs.price_dates()}; your own lie in LAB_HOME/prices.json.")

    return Output(costs.to_json(bill, printed), display)


def show_claims(arguments: argparse.Namespace) -> Output:
    chosen = [claims.get(arguments.id)] if arguments.id else list(claims.all_claims())
    answers = []
    # a dozen models are forecast; a terminal shows how far it is, anything else shows nothing
    with console.status("Computing …") if not arguments.json else nullcontext() as shown:
        for index, claim in enumerate(chosen, 1):
            answers.append((claim, findings.find(claim.id)))
            if shown is not None:
                shown.update(f"Computing: {index} of {quantity(len(chosen), 'claim')}")

    def display() -> None:
        rows = [
            [claim.id, claim.says, finding.value, finding.how, finding.verdict]
            for claim, finding in answers
        ]
        table("Claims", ["id", "says", "here", "how", "verdict"], rows)
        if arguments.id:
            for claim, finding in answers:
                figures = [
                    [figure.title, figure.printed, f"{figure.here} {figure.unit}", figure.formula]
                    for figure in finding.figures
                ]
                table(claim.id, ["", "printed", "here", "how"], figures)
                say(finding.note)

    listed = [
        {
            "id": claim.id,
            "says": claim.says,
            "value": finding.verdict if finding.value == "–" else finding.value,
            "how": finding.how,
            "verdict": finding.verdict,
        }
        for claim, finding in answers
    ]
    return Output({"claims": listed}, display)
