"""merge, gguf and evaluate: what is done with results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from lab import paths
from lab.chat.models import FORMS, parse
from lab.cli import downloads
from lab.cli.console import Output, console, table
from lab.data import catalog as datasets
from lab.formatting import size


def add(verb: Any) -> None:
    sub = verb("merge", merge, "merge an adapter into its base model")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    sub.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="type of the weights on the disk; auto: the type that the lab answers in",
    )
    sub = verb("gguf", gguf, "a result as one GGUF file for llama.cpp and Ollama")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("file", metavar="FILE", help="a file that does not exist yet")
    sub.add_argument("--type", default="F16", choices=("F32", "F16", "Q8_0"), help="of its weights")
    sub = verb("evaluate", evaluate, "evaluate models on the same held-out examples")
    sub.add_argument("models", nargs="+", metavar="MODEL", help=FORMS)
    sub.add_argument(
        "--dataset", metavar="SET", help="all rows of this set; else the first run's held-out rows"
    )


def merge(arguments: argparse.Namespace) -> Output:
    from lab.export.merge import check, merge

    result, target = paths.run_dir(arguments.run), Path(arguments.out)
    check(result, target, arguments.precision)  # nothing is downloaded for a merge that cannot be
    downloads.fetch_models([parse(f"run:{result.id}")])
    merged = merge(result, target, arguments.precision)

    def display() -> None:
        console.print(f"{escape(merged['folder'])}, {size(merged['bytes'])}.", soft_wrap=True)
        console.print(f"Read back: {merged['proof']['sentence']}.", soft_wrap=True)
        for text in filter(None, (merged["warning"], merged["note"])):
            console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)

    return Output(merged, display)


def gguf(arguments: argparse.Namespace) -> Output:
    from lab.export import gguf_file

    result, file = paths.run_dir(arguments.run), Path(arguments.file)
    gguf_file.check(result, file)  # nothing is downloaded for a file that cannot be
    downloads.fetch_models([parse(f"run:{result.id}")])
    written = gguf_file.of_run(result, file, arguments.type)

    def display() -> None:
        console.print(f"{escape(written['file'])}, {size(written['bytes'])}.", soft_wrap=True)
        console.print(f"Read back: {written['proof']['sentence']}.", soft_wrap=True)
        for program, command in written["commands"].items():
            console.print(f"{program}: {escape(command)}", soft_wrap=True)

    return Output(written, display)


def evaluate(arguments: argparse.Namespace) -> Output:
    from lab.evals.held_out import evaluate

    names = [parse(name) for name in arguments.models]
    if arguments.dataset is not None:
        datasets.resolve(arguments.dataset)  # nothing is downloaded for a set that is not there
    downloads.fetch_models(names)
    results = evaluate(names, arguments.dataset)

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
