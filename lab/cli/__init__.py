"""The command line: every page's power without a browser.

Exit codes: 0 done, 1 the run failed, 2 the input was wrong (message on stderr, nothing written).
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence

from lab.cli import bench, catalog, chat, compare, demo, memory, race, results, runs
from lab.errors import LabError

Verb = Callable[[argparse.Namespace], int]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m lab",
        description="Fine-tune language models on one machine: fully and with adapters, "
        "watched, compared, and talked to.",
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, call: Verb, help: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help)
        sub.add_argument("--json", action="store_true", help="print one JSON document")
        sub.set_defaults(call=call)
        return sub

    for module in (demo, catalog, memory, runs, race, compare, chat, results, bench):
        module.add(verb)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    # libraries announce their own next versions; a person here cannot do anything about it
    warnings.filterwarnings("ignore", category=FutureWarning)
    arguments = parser().parse_args(argv)
    call: Verb = arguments.call
    try:
        return call(arguments)
    except LabError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("Interrupted. Runs that were started go on.", file=sys.stderr)
        return 130
