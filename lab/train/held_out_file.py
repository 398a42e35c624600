"""`held_out.jsonl`: what each evaluation found for each held-out row, so that runs can be compared
row by row. `lab/runs/held_out_losses.py` reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from lab.data.batches import TokenSequence
from lab.paths import RunDir

DIGITS = 8  # significant, of a loss


def write_rows(run: RunDir, attempt: int, rows_hash: str, rows: Sequence[TokenSequence]) -> None:
    """The line that names the rows, before the first losses. `sources` are rows of the dataset's
    file: rows of one source are parts of one document. `tokens` are those that the loss counts."""
    sources = [row.sources[0] if row.sources else -1 for row in rows]
    tokens = [row.targets for row in rows]
    record = {"kind": "rows", "hash": rows_hash, "sources": sources, "tokens": tokens}
    _append(run, {"v": 1, "attempt": attempt, **record})


def write_losses(run: RunDir, attempt: int, step: int, sums: Sequence[float], **more: str) -> None:
    """The losses of one evaluation: a sum in nats for each row, in the order of the rows."""
    rounded = [float(f"{value:.{DIGITS}g}") for value in sums]
    _append(run, {"attempt": attempt, "kind": "losses", "step": step, **more, "sums": rounded})


def _append(run: RunDir, record: dict[str, Any]) -> None:
    """One write of one line; an unfinished line of a killed attempt is ended first."""
    with run.held_out.open("ab+") as file:
        line = json.dumps(record).encode() + b"\n"
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
