"""merge, gguf, combine, push and evaluate: what is done with results."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from lab import paths
from lab.chat.models import FORMS, parse
from lab.cli import downloads
from lab.cli.console import Output, console, result_of, say, table
from lab.data import catalog as datasets
from lab.errors import LabError
from lab.export import combine, push
from lab.formatting import quantity, size
from lab.hub import upload
from lab.schema import quote


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
    sub = verb("combine", combine_results, "adapters of one base as one new LoRA")
    sub.add_argument("runs", nargs="+", metavar="RUN")
    sub.add_argument("--type", default="cat", help=f"one of {', '.join(combine.TYPES)}")
    sub.add_argument("--weights", metavar="A,B,…", help="one for each; default: equal, adding to 1")
    sub.add_argument("--density", type=float, default=0.5, help="share that TIES and DARE keep")
    sub.add_argument("--rank", type=int, help="of what is cut down or converted")
    sub.add_argument(
        "--energy",
        type=float,
        metavar="SHARE",
        help="an adapter that is no LoRA is converted at the rank of each layer that keeps this "
        "share of its energy, such as 0.95",
    )
    sub.add_argument("--name", default="", help="default: the names of the results, with a +")
    sub = verb("push", push_result, "a result to the Hub, with its model card")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("name", metavar="ORG/NAME")
    visibility = sub.add_mutually_exclusive_group(required=True)
    visibility.add_argument("--private", action="store_true")
    visibility.add_argument("--public", action="store_true")
    sub.add_argument(
        "--what",
        default=push.RESULT,
        help="result, or an export such as merged-bfloat16, gguf-Q8_0",
    )
    sub.add_argument("--update", action="store_true", help="write to a repository that exists")
    sub.add_argument("--yes", action="store_true", help="do not ask")
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
        console.print(f"{escape(merged.folder)}, {size(merged.bytes)}.", soft_wrap=True)
        console.print(f"Read back: {merged.proof['sentence']}.", soft_wrap=True)
        for text in filter(None, (merged.warning, merged.note)):
            console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)

    return Output(asdict(merged), display)


def gguf(arguments: argparse.Namespace) -> Output:
    from lab.export import gguf_file

    result, file = paths.run_dir(arguments.run), Path(arguments.file)
    gguf_file.check(result, file)  # nothing is downloaded for a file that cannot be
    downloads.fetch_models([parse(f"run:{result.id}")])
    written = gguf_file.of_run(result, file, arguments.type)

    def display() -> None:
        console.print(f"{escape(written.file)}, {size(written.bytes)}.", soft_wrap=True)
        console.print(f"Read back: {written.proof['sentence']}.", soft_wrap=True)
        for program, command in written.commands.items():
            console.print(f"{program}: {escape(command)}", soft_wrap=True)

    return Output(asdict(written), display)


def combine_results(arguments: argparse.Namespace) -> Output:
    runs = tuple(arguments.runs)
    weights = tuple(1 / len(runs) for _ in runs)
    if arguments.weights is not None:
        try:
            weights = tuple(float(text) for text in arguments.weights.split(","))
        except ValueError:
            raise LabError(
                f"--weights {quote(arguments.weights)} are no numbers.", "Write 0.5,0.5"
            ) from None
    combination = combine.Combination(
        runs, weights, arguments.type, arguments.density, arguments.rank, arguments.name,
        energy=arguments.energy,
    )  # fmt: skip
    combine.check(combination)  # nothing is downloaded for what cannot be
    downloads.fetch_models([parse(f"run:{runs[0]}")])
    combined = combine.combine(combination)

    def display() -> None:
        proof = combined.proof
        console.print(
            f"{combined.run}: rank {combined.rank}, {size(combined.bytes)}.", soft_wrap=True
        )
        console.print(
            f"Read back with {proof['loaded_with']}: largest logit difference "
            f"{proof['largest_difference']:.1e} of their spread (bound {proof['tolerance']:g}), "
            f"{quantity(proof['tokens'], 'token')}. From the weighted sum of the updates it "
            f"differs by {100 * combined.deviation:.2g} % of its length.",
            soft_wrap=True,
        )
        if combined.note:
            console.print(f"[yellow]{escape(combined.note)}[/]", soft_wrap=True)

    return Output(asdict(combined), display)


def push_result(arguments: argparse.Namespace) -> Output:
    """In a process of its own, whose libraries may use the network."""
    run = paths.run_dir(arguments.run)
    files = push.contents(run, arguments.what)
    upload.check_name(arguments.name)
    upload.check_access()
    if not arguments.yes:
        _confirm(arguments.name, "private" if arguments.private else "public", files)
    push.start(
        run, arguments.name, arguments.what, private=arguments.private, update=arguments.update
    )
    interrupted = LabError("The upload was interrupted.", "Start it again.")
    commit = result_of(push.job_file(run), arguments, interrupted)

    def display() -> None:
        kind = "private" if commit["is_private"] else "public"
        console.print(
            f"{escape(commit['url'])}, {kind}, commit {commit['commit']}.", soft_wrap=True
        )
        console.print(
            f"{commit['verified']} of {quantity(commit['files'], 'file')}: the same hash "
            "there as here."
        )

    return Output(commit, display)


def _confirm(name: str, visibility: str, files: dict[str, Any]) -> None:
    """Have a person type the name again. Raises LabError where nobody can, or another is typed."""
    if not sys.stdin.isatty():
        raise LabError(
            f"Nobody is there to confirm the upload to {quote(name)} as {visibility}.", "Add --yes."
        )
    say(
        f"{quantity(len(files), 'file')} to upload to {name}, which will be {visibility}: "
        f"{', '.join(sorted(files))}"
    )
    if input("Type the name to confirm: ").strip() != name:
        raise LabError("That is another name. Nothing was uploaded.")


def evaluate(arguments: argparse.Namespace) -> Output:
    from lab.evals.held_out import evaluate

    names = [parse(name) for name in arguments.models]
    if arguments.dataset is not None:
        datasets.resolve(arguments.dataset)  # nothing is downloaded for a set that is not there
    downloads.fetch_models(names)
    results = evaluate(names, arguments.dataset)

    def display() -> None:
        table(
            f"{quantity(results[0].rows, 'sequence')}, "
            f"{quantity(results[0].tokens, 'loss token')}, same for all",
            ["model", "loss (nats per token)", "perplexity"],
            [[row.model, f"{row.loss:.4f}", f"{row.perplexity:.3g}"] for row in results],
            right="lrr",
        )
        for note in filter(None, (row.note for row in results)):
            console.print(f"[yellow]{escape(note)}[/]")

    return Output({"models": [asdict(row) for row in results]}, display)
