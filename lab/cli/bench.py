"""bench: measurements on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.markup import escape

from lab.chat.models import FORMS
from lab.cli import bench_speed
from lab.cli.console import Output, console, table
from lab.errors import LabError
from lab.formatting import duration, quantity, size
from lab.spec import RunSpec


def add(verb: Any) -> None:
    sub = verb("bench", run, f"measure on this machine: {', '.join(sorted(BENCHES))}")
    sub.add_argument("what", choices=sorted(BENCHES))
    sub.add_argument("--kills", type=int, metavar="N", help="of faults (50) and services (20)")
    sub.add_argument("--seconds", type=float, metavar="S", help="of ui: how long viewers look")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--cases",
        type=int,
        metavar="N",
        help="of hostile: bad inputs (400); of memory: outlines against N traced steps",
    )
    sub.add_argument("--whole", action="store_true", help="trace every layer of each case too")
    sub.add_argument("--models", metavar="A,B,C", help=f"of chat: two or more of {FORMS}")
    bench_speed.add(sub)


def run(arguments: argparse.Namespace) -> Output:
    if arguments.cases is not None and not 1 <= arguments.cases <= 10_000:
        raise LabError(f"--cases is {arguments.cases}.", "Give 1 to 10000.")
    if arguments.kills is not None and not 1 <= arguments.kills <= 100_000:
        raise LabError(f"--kills is {arguments.kills}.", "Give 1 to 100000.")
    return BENCHES[arguments.what](arguments)


def _teller(arguments: argparse.Namespace) -> Callable[[str], object]:
    return (lambda text: None) if arguments.json else console.print


def chat(arguments: argparse.Namespace) -> Output:
    from transformers.utils import logging

    from bench.chat_decoding import chat

    logging.disable_progress_bar()
    names = (arguments.models or "").split(",")
    report = chat(names, arguments.pairs or 10, _teller(arguments)).to_json()
    figures = {
        "base": size(report["base_bytes"]),
        "adapters on the disk": size(report["file_bytes"]),
        "tensors / (base + adapters)": f"{report['memory_share']:.3f}",
        "resident / (base + adapters)": f"{report['resident_share']:.3f}",
        "a switch, at most": f"{1000 * report['switch_s']['largest']:.1f} ms",
        "together / apart": _spread(report["time_share"]),
        "processor time of it": _spread(report["cpu_share"]),
        "same tokens": f"{report['equal_answers']} of {len(names) * len(report['apart_s'])}",
    }
    return Output(report, lambda: _show_figures("Models of a chat", figures))


def _spread(figures: dict[str, Any]) -> str:
    return f"{figures['median']:.3f} ({figures['smallest']:.3f} to {figures['largest']:.3f})"


def faults(arguments: argparse.Namespace) -> Output:
    from bench.fault_injection import faults

    report = faults(arguments.kills or 50, arguments.seed, _teller(arguments))
    rows = [
        ["kills", f"{report.kills} on {quantity(report.runs, 'run')}"],
        ["by phase", ", ".join(f"{name} {count}" for name, count in report.phases.items())],
        ["resumed to the end", f"{report.resumed} of {report.runs}"],
        ["weights bit for bit equal", f"{report.equal} of {report.runs}"],
        ["one continuous history", f"{report.continuous} of {report.runs}"],
        ["max records lost per kill", str(report.lost_records)],
        ["damaged checkpoints skipped", str(report.damaged_skipped)],
        ["time", duration(report.seconds)],
    ]
    return _report("SIGKILL at random moments", report, rows)


def hostile(arguments: argparse.Namespace) -> Output:
    from bench.hostile import CASES, hostile

    report = hostile(arguments.cases or CASES, arguments.seed, _teller(arguments))
    rows = [
        ["cases", ", ".join(f"{count} of {kind}" for kind, count in report.kinds.items())],
        ["refused in words", f"{report.refused} of {report.cases}"],
        ["tracebacks", str(len(report.tracebacks))],
        ["hangs", str(len(report.hangs))],
        ["wrong acceptances and refusals", str(len(report.wrong))],
        ["slowest", f"{duration(report.slowest_s)} ({report.slowest})"],
        ["time", duration(report.seconds)],
    ]
    return _report("Bad input", report, rows)


def services(arguments: argparse.Namespace) -> Output:
    from bench.service_restarts import services

    report = services(arguments.kills or 20, arguments.seed, _teller(arguments))
    rows = [
        ["kills of the supervisor", str(report.supervisor_kills)],
        ["kills of the web server", str(report.web_kills)],
        ["runs that ended done", f"{report.done} of {report.runs}"],
        ["started once, every step once", f"{report.once} of {report.runs}"],
        ["weights bit for bit equal", f"{report.equal} of {report.runs}"],
        ["time", duration(report.seconds)],
    ]
    return _report("A queue whose services are killed", report, rows)


def memory(arguments: argparse.Namespace) -> Output:
    """On a GPU predicted against measured; on a CPU what it can check; with --cases the grid."""
    import torch

    from bench import estimate_accuracy as bench

    say = _teller(arguments)
    if arguments.cases is not None:
        report = bench.grid(arguments.cases, arguments.seed, say, whole=arguments.whole)
        figures = {name: value for name, value in report.items() if name != "rows"}
        return Output(report, lambda: _show_figures("Predictions against each other", figures))
    if torch.cuda.is_available():
        names = (arguments.model,) if arguments.model else bench.MODELS
        rows = [bench.measure(case, say) for case in bench.matrix(names)]
        summary = bench.summary(rows)
        return Output(
            {"rows": rows, **summary},
            lambda: _show_figures("Predicted against measured", summary),
            1 if summary["said_to_fit_but_did_not"] else 0,
        )
    say("No GPU: checking tensor bytes by kind, and the tracker against real tensors.")
    rows = [bench.check_tracker(case) for case in bench.on_processor()]

    def display() -> None:
        table(
            "Allocation tracker on a CPU",
            ["method", "bytes by kind", "fake step", "real step", "error"],
            [
                [
                    row["method"],
                    "equal" if row["kinds_equal"] else "differ",
                    size(row["fake_peak"]),
                    size(row["real_peak"]),
                    f"{row['error']:+.3%}",
                ]
                for row in rows
            ],
            right="llrrr",
        )

    # on a CPU fakes take attention apart, which keeps copies of keys and values that the fused
    # kernel of the real step does not; CUDA's rules have a kernel of their own
    is_close = all(row["kinds_equal"] and -0.005 < row["error"] < 0.02 for row in rows)
    return Output({"rows": rows}, display, 0 if is_close else 1)


def rows(arguments: argparse.Namespace) -> Output:
    """Predicted against measured for the rows that runs have, on a CPU."""
    from transformers.utils import logging

    from bench.run_rows import CASES, measure

    logging.disable_progress_bar()
    say = _teller(arguments)
    measured = []
    for title in CASES:
        say(f"{title} …")
        measured.append(measure(title, arguments.model or RunSpec().model))

    def display() -> None:
        table(
            "Peak of the rows of a run",
            ["case", "rows", "longest", "measured", "predicted", "error", "with full rows"],
            [
                [
                    row["case"],
                    str(row["rows"]),
                    f"{row['longest_row']} of {row['max_length']}",
                    size(row["measured"]),
                    size(row["predicted"]),
                    f"{row['error']:+.2%}",
                    f"{row['error_with_full_rows']:+.0%}",
                ]
                for row in measured
            ],
            right="lrrrrrr",
        )

    is_close = all(abs(row["error"]) <= 0.01 for row in measured)
    return Output({"rows": measured}, display, 0 if is_close else 1)


def attempts(arguments: argparse.Namespace) -> Output:
    """Whole attempts of every method and optimizer on a GPU, predicted against measured."""
    from bench import whole_attempts as bench

    bench.check_machine()
    only = tuple(filter(None, (arguments.only or "").split(",")))
    with bench.home_with_model(arguments.model or "llama-3.2-1b") as model:
        rows = [bench.measure(model, *case, _teller(arguments)) for case in bench.cases(only)]

    def display() -> None:
        table(
            "Peaks of whole attempts",
            ["method", "optimizer", "measured", "predicted", "error"],
            [
                [
                    row["method"],
                    row["optimizer"],
                    size(row["measured"]) if "measured" in row else "",
                    size(row["predicted"]) if "predicted" in row else "",
                    f"{row['error']:+.2%}" if "error" in row else _why_not(row),
                ]
                for row in rows
            ],
            right="llrrl",
        )

    errors = [abs(row["error"]) for row in rows if "error" in row]
    has_failed = not errors or any("failed" in row for row in rows)
    return Output({"rows": rows}, display, 1 if has_failed or max(errors) > 0.01 else 0)


def _why_not(row: dict[str, Any]) -> str:
    return escape(row.get("failed") or " ".join(row["problems"]))


def merges(arguments: argparse.Namespace) -> Output:
    from transformers.utils import logging

    from bench.merge_figures import merges

    logging.disable_progress_bar()
    names = tuple(filter(None, (arguments.only or "").split(",")))
    rows = merges(names, arguments.model or "", _teller(arguments))

    def display() -> None:
        table(
            "Merged models against the results that they are made of",
            ["method", "base", "written", "largest difference", "of spread", "same top", "KL"],
            [
                [
                    row["method"],
                    row["base"],
                    row["written"],
                    f"{row['largest_difference']:.2g}",
                    f"{row['share_of_spread']:.1e}",
                    f"{row['same_top']:.2%}",
                    f"{row['kl']:.1e}",
                ]
                for row in rows
            ],
            right="lllrrrr",
        )

    return Output({"rows": rows}, display)


def ui(arguments: argparse.Namespace) -> Output:
    from bench.page_load import beside_a_worker, ui

    seconds = arguments.seconds or 60.0
    report = ui(seconds, _teller(arguments))
    report["beside_a_worker"] = beside_a_worker(min(seconds, 60.0), _teller(arguments))

    def display() -> None:
        rows = [
            [name, ", ".join(f"{key} {value:.3g}" for key, value in figures.items() if value)]
            for name, figures in report.items()
            if isinstance(figures, dict)
        ]
        table("Pages", ["", ""], rows)

    return Output(report, display)


def _show_figures(title: str, figures: dict[str, Any]) -> None:
    table(title, ["", ""], [[name, str(value)] for name, value in figures.items()])


def _report(title: str, report: Any, rows: list[list[str]]) -> Output:
    def display() -> None:
        table(title, ["", ""], rows)
        for failure in report.failures:
            console.print(f"[red]{escape(failure)}[/red]")

    return Output(
        asdict(report) | {"is_clean": report.is_clean}, display, 0 if report.is_clean else 1
    )


BENCHES: dict[str, Callable[[argparse.Namespace], Output]] = {
    "attempts": attempts,
    "chat": chat,
    "faults": faults,
    "hostile": hostile,
    "memory": memory,
    "merges": merges,
    "overhead": lambda arguments: bench_speed.overhead(arguments, _teller(arguments)),
    "rows": rows,
    "services": services,
    "speed": lambda arguments: bench_speed.speed(arguments, _teller(arguments)),
    "ui": ui,
}
