"""`models --search`: models of the hub, with what decides whether one can be trained here."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from lab import host
from lab.cli.console import Output, console, table
from lab.formatting import count
from lab.hub import search as hub
from lab.hub.search import HubModel

GB = 1e9
# What a run takes beside its weights: about 2 GB on a GPU, 1.6 GB in a process without one.
GPU_BASE, CPU_BASE = 2.0 * GB, 1.6 * GB
BYTES = {"lora": {True: 2.0, False: 4.0}, "qlora": {True: 0.6, False: 1.2}}  # a parameter


def search(text: str, limit: int) -> Output:
    """The models with `text` in their name, the most downloaded first. Raises LabError."""
    room, on_gpu = _room()
    rows = [_row(model, room, on_gpu) for model in hub.models(text, max(1, limit))]

    def display() -> None:
        if not rows:
            console.print(f"No model that writes text has '{escape(text)}' in its name.")
            return
        table(
            f"Models of the Hub with '{text}'",
            ["id", "parameters", "license", "downloads", "gated", "safetensors", "fits here"],
            [
                [
                    row["id"],
                    count(row["parameters"]),
                    row["license"],
                    count(row["downloads"]),
                    "yes" if row["gated"] else "no",
                    "yes" if row["safetensors"] else "no",
                    row["fits_with"] or ("not known" if row["fits_here"] is None else "no"),
                ]
                for row in rows
            ],
            right="lrlr",
        )
        console.print(
            "Fits here: the largest method that fits by the size of the weights alone; "
            "'estimate --model ID' counts a run."
        )

    return Output({"models": rows}, display)


def _room() -> tuple[float, bool]:
    """(bytes of the largest GPU, or of this machine's memory; whether it is a GPU)."""
    gpus = host.gpus()
    if gpus:
        return float(host.largest(gpus).memory_bytes), True
    return float(host.describe().memory_bytes), False


def _row(model: HubModel, room: float, on_gpu: bool) -> dict[str, Any]:
    """A line of the answer. `fits_with` is lora or qlora, "" where neither fits or nothing is
    known."""
    needs = {
        method: (GPU_BASE if on_gpu else CPU_BASE) + bytes_each[on_gpu] * model.parameters
        for method, bytes_each in BYTES.items()
        if model.parameters
    }
    fits_with = next((method for method, needed in needs.items() if needed <= room), "")
    is_known = bool(needs) and model.has_safetensors
    return {
        **model.to_json(),
        "fits_here": bool(fits_with) if is_known else (None if model.has_safetensors else False),
        "fits_with": fits_with if is_known else "",
        "needs_bytes": {method: round(needed) for method, needed in needs.items()},
    }
