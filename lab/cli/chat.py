"""chat: the base and results side by side in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from lab import schema
from lab.chat.answers import ModelAnswer
from lab.chat.models import FORMS, ModelRef, parse
from lab.chat.requests import MAX_CONTENT_CHARS, Bounds
from lab.chat.settings import GenerationSettings
from lab.chat.side_by_side import answer_all, prompt_warning
from lab.cli import downloads
from lab.cli.console import Output, console, say
from lab.errors import LabError, Problem
from lab.formatting import quantity

# the options of the command line by the fields of a request, whose bounds they share
OPTIONS = {
    "seed": "seed",
    "max_tokens": "max-new-tokens",
    "temperature": "temperature",
    "system_prompt": "system",
    "top_p": "top-p",
    "top_k": "top-k",
    "repetition_penalty": "repetition-penalty",
    "stop": "stop",
}


def add(verb: Any) -> None:
    sub = verb("chat", run, "ask several models the same question, with the same seed")
    sub.add_argument("models", nargs="*", metavar="MODEL", help=FORMS)
    sub.add_argument("--prompt", metavar="TEXT")
    sub.add_argument("--receipt", type=Path, metavar="FILE", help="repeat the answer of a receipt")
    sub.add_argument("--system", metavar="TEXT", help="system prompt; default: the first run's")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--max-new-tokens", type=int, default=128)
    sub.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0: greedy decoding (always the most likely token)",
    )
    sub.add_argument("--top-p", type=float, default=1.0, help="1 draws from all tokens")
    sub.add_argument("--top-k", type=int, default=0, help="0 draws from all tokens")
    sub.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X")
    sub.add_argument("--stop", action="append", metavar="TEXT", help="end an answer before it")


def run(arguments: argparse.Namespace) -> Output:
    if arguments.receipt is not None:
        return _repeat(arguments)
    if not arguments.models or arguments.prompt is None:
        raise LabError(
            "chat needs models and a --prompt, or a --receipt.",
            "For example: chat base:ID run:ID --prompt TEXT",
        )
    names = [parse(name) for name in arguments.models]
    answers = ask(names, arguments.prompt, settings(arguments), quiet=arguments.json)

    def display() -> None:
        show(arguments.prompt, answers)

    warning = prompt_warning({answer.model: answer.receipt for answer in answers})
    return Output(
        {"answers": [answer.to_json() for answer in answers], "warning": warning}, display
    )


def settings(arguments: argparse.Namespace) -> GenerationSettings:
    """Raises LabError for a value that no answer can be made with."""
    if not arguments.prompt.strip():
        raise LabError("The prompt is empty.", "Give --prompt some text.")
    request = {
        "seed": arguments.seed,
        "max_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "system_prompt": arguments.system or "",
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "repetition_penalty": arguments.repetition_penalty,
    } | ({"stop": arguments.stop} if arguments.stop else {})
    problems: list[Problem] = []
    schema.parse(Bounds, request, "", problems)
    prompt, _ = schema.validate(
        arguments.prompt, str, {"multiline": True, "max_characters": MAX_CONTENT_CHARS}
    )
    messages = [f"--{OPTIONS[problem.field]} {problem.message}" for problem in problems]
    messages += [f"--prompt {prompt}"] if prompt else []
    if messages:
        raise LabError(" ".join(messages))
    return GenerationSettings(
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        system_prompt=arguments.system,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        repetition_penalty=arguments.repetition_penalty,
        stop=tuple(arguments.stop or ()),
    )


def _repeat(arguments: argparse.Namespace) -> Output:
    """Exit code 0 for the same tokens, 1 for others."""
    from lab.chat.repeat import repeat

    if arguments.models or arguments.prompt is not None:
        raise LabError("--receipt names its own model and prompt.", "Give nothing beside it.")
    repetition = repeat(arguments.receipt, downloads.fetch_models)

    def display() -> None:
        console.print(Panel(Text(repetition.answer.text), title=repetition.answer.model))
        if repetition.is_same:
            say("The same tokens.")
        else:
            say(f"Other tokens from number {(repetition.first_difference or 0) + 1} on.")
        for words in repetition.differences:
            say(f"Changed since: {words}.")

    return Output(repetition.to_json(), display, 0 if repetition.is_same else 1)


def ask(
    names: list[ModelRef], prompt: str, options: GenerationSettings, *, quiet: bool = False
) -> list[ModelAnswer]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    downloads.fetch_models(names)
    conversation = [{"role": "user", "content": prompt}]
    if quiet or not console.is_terminal:
        return answer_all(names, conversation, options)
    with console.status(f"Asking {quantity(len(names), 'model')} …"):
        return answer_all(names, conversation, options)


def show(prompt: str, answers: list[ModelAnswer]) -> None:
    console.print(Text(prompt, style="bold"))
    for answer in answers:
        foot = (
            f"{quantity(len(answer.token_ids), 'token')}, {answer.seconds:.1f} s, {answer.finish}"
        )
        console.print(Panel(Text(answer.text), title=escape(answer.model), subtitle=foot))
    for answer in answers:
        if answer.receipt.warning:
            console.print(f"[yellow]{escape(answer.model)}: {escape(answer.receipt.warning)}[/]")
    receipt = answers[-1].receipt
    system = answers[0].receipt.system_prompt or "none"
    warning = prompt_warning({answer.model: answer.receipt for answer in answers})
    if warning:
        console.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True)
    same = "Same question" if warning else f"Same prompt ({receipt.prompt_hash})"
    console.print(
        f"[dim]{same}, system prompt ({escape(system)}), "
        f"seed {receipt.seed}, {receipt.dtype}.[/dim]"
    )
