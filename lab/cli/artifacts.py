"""merge and evaluate: what is done with results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from lab import paths
from lab.chat.models import parse
from lab.cli.console import Output, console, table
from lab.formatting import size


def add(verb: Any) -> None:
    sub = verb("merge", merge, "a result and its base as one plain model folder")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    sub = verb("evaluate", evaluate, "the loss of models on the same held-out rows")
    sub.add_argument("models", nargs="+", metavar="MODEL", help="base:ID, run:ID or run:ID@STEP")
    sub.add_argument(
        "--dataset", metavar="SET", help="all rows of this set; else the first run's held-out rows"
    )


def merge(arguments: argparse.Namespace) -> Output:
    from lab.export.merge import merge

    merged = merge(paths.run_dir(arguments.run), Path(arguments.out))

    def display() -> None:
        max_difference = f"{merged['largest_difference']:.1e}"
        console.print(f"{escape(merged['folder'])}, {size(merged['bytes'])}.", soft_wrap=True)
        console.print(
            f"Read back, its logits differ from the result's by {max_difference} of their spread."
        )
        if merged["note"]:
            console.print(f"[yellow]{escape(merged['note'])}[/]")

    return Output(merged, display)


def evaluate(arguments: argparse.Namespace) -> Output:
    from lab.evals.held_out import evaluate

    results = evaluate([parse(name) for name in arguments.models], arguments.dataset)

    def display() -> None:
        table(
            f"{results[0]['rows']} rows, {results[0]['tokens']:,} counted tokens, the same for all",
            ["model", "loss (nats a token)", "perplexity"],
            [[row["model"], f"{row['loss']:.4f}", f"{row['perplexity']:.3g}"] for row in results],
            right="lrr",
        )
        for note in filter(None, (row["note"] for row in results)):
            console.print(f"[yellow]{escape(note)}[/]")

    return Output({"models": results}, display)
