"""The command line: every page's power without a browser.

Exit codes: 0 done, 1 the run failed, 2 the input was wrong (message on stderr, nothing written).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Never

from lab.cli import (
    advise,
    artifacts,
    bench,
    chat,
    compare,
    demo,
    evidence,
    harness,
    inventory,
    memory,
    race,
    rank,
    runs,
    score,
    serve,
    votes,
)
from lab.cli.console import Output, print_json, say
from lab.errors import LabError, SpecError, refusal_of
from lab.visible import visible

Verb = Callable[[argparse.Namespace], Output]


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog="python -m lab",
        description="Fine-tune language models on one machine: full or with adapters, with "
        "monitoring, comparison and chat.",
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, call: Verb, help: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help)
        sub.add_argument("--json", action="store_true", help="print one JSON document")
        sub.set_defaults(call=call)
        return sub

    for module in (
        demo,
        inventory,
        memory,
        runs,
        race,
        evidence,
        compare,
        rank,
        chat,
        votes,
        serve,
        artifacts,
        score,
        harness,
        bench,
        advise,
    ):
        module.add(verb)
    return top


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:
        super().error(visible(message))


def _refuse(error: LabError, arguments: argparse.Namespace) -> int:
    """Say what was wrong on stderr; with --json also as JSON on stdout, every problem of a spec."""
    say(error, error=True)
    if arguments.json:
        problems = error.problems if isinstance(error, SpecError) else []
        listed = [problem.to_json() for problem in problems]
        print_json({"error": error.message, "hint": error.hint, "problems": listed})
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    # libraries announce their own next versions; a person here cannot do anything about it
    warnings.filterwarnings("ignore", category=FutureWarning)
    arguments = parser().parse_args(argv)
    call: Verb = arguments.call
    try:
        return call(arguments).print(as_json=arguments.json)
    except BrokenPipeError:
        # the reader has closed the pipe; nothing is left to flush when Python ends
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (LabError, OSError) as error:
        return _refuse(refusal_of(error), arguments)
    except KeyboardInterrupt:
        say("Interrupted. Runs already started continue.", error=True)
        return 130
