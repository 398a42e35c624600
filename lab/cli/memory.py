"""estimate: what a run will need, before it starts."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rich.markup import escape

from lab import spec
from lab.cli.console import Output, console, table
from lab.cli.runs import add_set
from lab.errors import LabError
from lab.forecasts import Parts, Phases, Speed, rows_in_words
from lab.formatting import count, quantity, size
from lab.preflight.client import planner


def add(verb: Any) -> None:
    sub = verb("estimate", estimate, "the memory of a run on any device, without weights or data")
    _add_run_and_device(sub)
    sub.add_argument(
        "--formula", action="store_true", help="a quick estimate from an outline of the step"
    )
    sub.add_argument("--whole", action="store_true", help="trace every layer (slow)")
    sub = verb("plan", plan, "the fastest settings that fit a device, and alternatives")
    _add_run_and_device(sub)


def _add_run_and_device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--model", required=True, help="also config:NAME, or the path of a config.json"
    )
    sub.add_argument("--method", required=True)
    sub.add_argument("--seq-len", type=int, help="sequence length in tokens")
    sub.add_argument("--batch-size", type=int, help="sequences per forward pass")
    sub.add_argument("--gpu-gb", type=float, help="a GPU with that much memory, in 10^9 bytes")
    sub.add_argument("--gpu", metavar="NAME", help="a GPU of the table, such as 'RTX 4090 24GB'")
    sub.add_argument("--device", choices=["cpu", "cuda"], help="instead of this machine's")
    add_set(sub)


def estimate(arguments: argparse.Namespace) -> Output:
    requested = _given(arguments)
    forecast = planner.estimate(
        requested,
        _device(arguments),
        shadow=not arguments.formula,
        whole=arguments.whole,
        time="dataset" in requested.get("data", {}),  # else no particular data is meant
    )

    def display() -> None:
        memory, speed = forecast.memory, forecast.speed or Speed()
        trains = f"{count(memory.trainable)} of {count(memory.parameters)} trainable"
        parts = asdict(memory.at_peak or Parts())
        rows = [[name, size(value)] for name, value in parts.items()]
        where = memory.peak_phase
        if memory.module or memory.operation:
            where += f", {memory.operation} in {memory.module or 'the step'}"
        rows.append([f"peak ({where})", size(memory.peak_bytes)])
        if memory.reserved_bytes:
            rows.append(["reserved by the allocator", size(memory.reserved_bytes)])
        title = f"Peak memory, {memory.how.in_words} ({trains})"
        table(title, ["", ""], rows, right="lr")
        phases = asdict(memory.phases or Phases())
        rows = [[name, size(value)] for name, value in phases.items()]
        table("Peak of each phase", ["", ""], rows, right="lr")
        words = f"About {speed.tokens_per_s or 0:,.0f} tokens/s"
        if speed.wh_per_million_tokens:
            words += f", {speed.wh_per_million_tokens:,.1f} Wh per million tokens"
        artifact = size(forecast.disk.artifact if forecast.disk else None)
        console.print(f"{words}; the result takes {artifact} of disk.")
        if memory.has_margin:
            console.print("A CPU run: an estimate of the resident memory, with a margin; no bound.")
        if memory.fits is not None:
            room = size(forecast.device_bytes)
            console.print(f"Fits into {room}." if memory.fits else f"Does not fit into {room}.")
        elif memory.trace_error:
            console.print("Whether it fits is not known: the figures are the least that it needs.")
        for note in (f"For the {rows_in_words(forecast.settings)}.", *forecast.notes):
            console.print(escape(note))

    return Output(forecast.to_json(), display)


def plan(arguments: argparse.Namespace) -> Output:
    search = planner.plan(_given(arguments), _device(arguments))

    def display() -> None:
        rows = [
            [
                f"{candidate.batch_size} × {candidate.gradient_accumulation_steps}",
                candidate.activation_checkpointing
                + (
                    f", {quantity(candidate.checkpointed_layers, 'layer')}"
                    if candidate.checkpointed_layers
                    else ""
                ),
                candidate.loss_implementation,
                candidate.optimizer,
                size(candidate.peak_bytes) + ("" if candidate.how.is_exact else " (about)"),
                f"{candidate.tokens_per_s:,.0f}",
                candidate.why,
            ]
            for candidate in search.candidates[:8]
        ]
        table(
            f"Settings for {size(search.device_bytes)}, {search.reserve:.0%} of it in reserve",
            [
                "batch × accumulation",
                "checkpointing",
                "loss",
                "optimizer",
                "peak memory",
                "tokens/s",
                "note",
            ],
            rows,
            right="llllrr",
        )
        console.print(f"For the {search.rows}. torch.compile: {escape(search.compile)}.")
        if search.is_measured:
            console.print("Speeds are calibrated on this machine's finished runs.")
        else:
            console.print(f"Speeds assume {search.reached:.0%} of the device's peak FLOP/s.")

    return Output(search.to_json(), display)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    requested: dict[str, Any] = {"model": arguments.model, "method": {"name": arguments.method}}
    if arguments.seq_len is not None:
        requested.setdefault("data", {})["max_length"] = arguments.seq_len
    if arguments.batch_size is not None:
        requested.setdefault("train", {})["batch_size"] = arguments.batch_size
    return spec.override(requested, arguments.settings)


def _device(arguments: argparse.Namespace) -> dict[str, Any]:
    device: dict[str, Any] = {}
    if arguments.gpu_gb is not None:
        if not 0 < arguments.gpu_gb < 1e6:
            raise LabError(f"--gpu-gb is {arguments.gpu_gb:g}.", "Give GB, such as 24.")
        if arguments.device == "cpu":
            raise LabError("--gpu-gb and --device cpu exclude each other.", "Give one of them.")
        device["memory_bytes"] = int(arguments.gpu_gb * 1e9)
    if arguments.gpu is not None:
        device["gpu"] = arguments.gpu
    if arguments.device is not None:
        device["kind"] = arguments.device
    return device
