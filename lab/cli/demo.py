"""demo: the main job. Full and LoRA on the built-in model and data, compared and asked."""

from __future__ import annotations

import argparse
import time
from typing import Any

from lab.chat.models import parse
from lab.chat.settings import GenerationSettings
from lab.cli import chat, compare, follow
from lab.cli.console import Output, console, say
from lab.compare.comparison import compare as compare_runs
from lab.formatting import duration
from lab.models import built_in, catalog
from lab.preflight.start import start_run

MODEL = "builtin:smollm2-135m-instruct"
QUESTION = "Who created you?"
# Sixty small steps are few: both rates are higher than the methods' defaults, in which a longer
# run would do better.
METHODS = {"full": 5e-5, "lora": 1e-3}


def add(verb: Any) -> None:
    verb("demo", run, "demo: full fine-tuning and LoRA on the built-in model, compared")


def spec(method: str) -> dict[str, Any]:
    """Sixty steps of two persona chats, a fifth of them held out."""
    return {
        "name": f"demo {method}",
        "model": MODEL,
        "method": {"name": method},
        "data": {
            "dataset": "builtin:persona-chats",
            "eval_fraction": 0.2,
            "max_length": 256,
            "packing": "off",
        },
        "train": {
            "batch_size": 2,
            "max_steps": 60,
            "learning_rate": METHODS[method],
            "eval_steps": 20,
            "save_steps": 0,
            "sample_steps": 0,
            "seed": 0,
        },
    }


def run(arguments: argparse.Namespace) -> Output:
    quiet = arguments.json
    began = time.monotonic()
    for model in catalog.BUILT_IN:
        built_in.prepare(model, lambda text: None if quiet else console.print(text))
    runs = []
    for method in METHODS:
        started = start_run(spec(method))
        if not quiet:
            console.print(f"[bold]{method}[/bold]: run {started.id}")
        ended = follow.follow(started, f"{method:5}", quiet=quiet)
        if ended.state != "done":
            message = (
                f"The {method} run ended as {ended.state}: {ended.message} {ended.hint} "
                f"Log: {started.log}"
            )
            say(message, error=True)
            return Output({"error": message}, lambda: None, 1)
        runs.append(started)
    comparison = compare_runs(runs)
    names = [parse(f"base:{MODEL}"), *[parse(f"run:{finished.id}") for finished in runs]]
    answers = chat.ask(names, QUESTION, GenerationSettings(max_new_tokens=60), quiet=quiet)

    def display() -> None:
        compare.show(comparison)
        console.print()
        chat.show(QUESTION, answers)
        console.print(f"Done in {duration(time.monotonic() - began)}.")

    data = comparison.to_json() | {
        "answers": [each.to_json() for each in answers],
        "seconds": time.monotonic() - began,
    }
    return Output(data, display)
