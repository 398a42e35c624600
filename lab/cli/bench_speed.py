"""bench speed and bench overhead: how fast the worker is, and what the lab itself costs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lab.cli.console import Output, console, table
from lab.errors import LabError
from lab.formatting import duration, size


def add(sub: Any) -> None:
    """The options of speed and overhead."""
    group = sub.add_argument_group("speed")
    group.add_argument(
        "--model",
        metavar="SHAPE",
        help="small, llama-3.2-1b or llama-3.1-8b; of memory: a shipped config; of merges: a model",
    )
    group.add_argument(
        "--only", metavar="A,B", help="of full, lora, qlora, chat; of merges and attempts: methods"
    )
    group.add_argument("--rivals", metavar="A,B", help="of plain, trl, liger, unsloth")
    group.add_argument("--pairs", type=int, metavar="N", help="rounds (20; 5 on a GPU)")
    group.add_argument(
        "--seldom",
        type=int,
        metavar="N",
        help="all contestants in every Nth round, the worker and plain in each (4; 1 on a GPU)",
    )
    group.add_argument("--length", type=int, metavar="T", help="sequence length in tokens")
    group.add_argument("--batch", type=int, metavar="B", help="rows a step")
    group.add_argument("--steps", type=int, metavar="N", help="timed steps a trial")
    group.add_argument("--compile", choices=("on", "off"), help="the worker's decoder layers")
    group.add_argument(
        "--pack",
        metavar="FILE.tgz",
        help="measure nothing: pack what a GPU machine without a network lacks",
    )
    group.add_argument("--python", default="3.12", help="of that machine (3.12)")
    group.add_argument("--with", dest="extra", default="", metavar="A,B", help="extra packages")


def speed(arguments: argparse.Namespace, tell: Callable[[str], object]) -> Output:
    from bench.throughput import Plan, speed

    if arguments.pack:
        return _pack(arguments, tell)
    changes: dict[str, Any] = {
        name: tuple(filter(None, chosen.split(",")))
        for name, chosen in (("cases", arguments.only), ("rivals", arguments.rivals))
        if chosen is not None
    }
    for name, most in (
        ("pairs", 1000),
        ("seldom", 1000),
        ("length", 1 << 17),
        ("batch", 4096),
        ("steps", 10_000),
    ):
        value = getattr(arguments, name)
        if value is None:
            continue
        if not 1 <= value <= most:
            raise LabError(f"--{name} is {value}.", f"Give 1 to {most}.")
        changes[name] = value
    if arguments.compile:
        changes["compile"] = arguments.compile
    report = speed(replace(Plan.for_machine(arguments.model), **changes), tell)

    def display() -> None:
        table(
            f"{report.model} on {report.device}",
            [
                "case",
                "contestant",
                "checkpointing",
                "tokens/s",
                "peak",
                "loss, first and last step",
            ],
            [
                [
                    row["case"],
                    row["contestant"],
                    row["checkpointing"],
                    f"{row['tokens_per_s']:,.0f}",
                    size(row["peak_bytes"]),
                    f"{row['losses'][0]:.4f}  {row['losses'][-1]:.4f}",
                ]
                for row in sorted(
                    report.trials, key=lambda row: (row["case"], row["checkpointing"] == "on")
                )
            ],
        )
        table(
            "The worker's tokens/s over a rival's",
            [
                "case",
                "rival",
                "checkpointing",
                "pairs",
                "median",
                "at least (95 %)",
                "smallest to largest",
            ],
            [
                [row["case"], row["rival"], row["checkpointing"], *_figures(row["ratio"])]
                for row in report.ratios
            ],
        )
        for name, why in report.missing.items():
            console.print(f"{name}: {why}")
        for failure in report.failures:
            console.print(f"[red]{failure}[/red]")
        console.print(
            "Equal work is proven by the losses of all steps, equal to "
            f"{max((row['tolerance'] for row in report.ratios), default=0):g}. "
            f"{duration(report.seconds)}."
        )

    return Output(
        asdict(report) | {"is_clean": report.is_clean}, display, 0 if report.is_clean else 1
    )


def _figures(ratio: dict[str, Any] | None) -> list[str]:
    if ratio is None:
        return ["–", "not equal work", "–", "–"]
    lower = "–" if ratio["lower"] is None else f"{ratio['lower']:.3f}"
    span = f"{ratio['smallest']:.3f} to {ratio['largest']:.3f}"
    return [str(ratio["pairs"]), f"{ratio['median']:.3f}", lower, span]


def _pack(arguments: argparse.Namespace, tell: Callable[[str], object]) -> Output:
    from bench.offline_bundle import pack

    extra = list(filter(None, arguments.extra.split(",")))
    bundle = pack(Path(arguments.pack), arguments.python, extra, tell)

    def display() -> None:
        console.print(f"{bundle['file']}, {size(bundle['bytes'])}. On the other machine:")
        console.print(bundle["commands"], soft_wrap=True)

    return Output(bundle, display)


def overhead(arguments: argparse.Namespace, tell: Callable[[str], object]) -> Output:
    from bench.overhead import overhead

    report = overhead(tell=tell)
    data = report.to_json()

    def display() -> None:
        median = data["median_s"]
        parts = ", ".join(f"{name} {ms:.2f} ms" for name, ms in report.parts_ms_a_step.items())
        phases = ", ".join(
            f"{name} {total / len(report.cold_s):.1f} s" for name, total in report.phases_s.items()
        )
        rows = [
            ["share of the loop's CPU time", f"{report.share:.2%} at {report.step_s:.2f} s a step"],
            ["of which a step", parts],
            ["bare import, load and one step", f"{median['bare']:.1f} s"],
            ["cold worker to its first step", _start(data, "cold")],
            ["spare worker to its first step", _start(data, "spare")],
            ["a cold start's phases", phases],
        ]
        table("What the lab itself costs", ["", ""], rows)

    return Output(data, display)


def _start(data: dict[str, Any], name: str) -> str:
    return f"{data['median_s'][name]:.1f} s, {data[f'{name}_over_bare']:.2f} times the bare one"
