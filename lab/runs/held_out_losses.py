"""Read `held_out.jsonl`: the loss of every held-out row at every evaluation of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.atomic_files import file_identity, finite_number
from lab.paths import RunDir
from lab.recent import Recent
from lab.runs.record_reader import continuous, read_lines

MAX_FILE_BYTES = 64_000_000  # bytes of a file that is read


@dataclass(frozen=True, eq=False)
class HeldOutLosses:
    """Legend: N held-out rows, E evaluations. Losses are sums in nats over the tokens of a row.

    sources: (N,) rows of the dataset's file. tokens: (N,) that the loss counts. base: (N,), None
    where the base was not measured. steps: (E,). sums: (E, N)."""

    rows_hash: str
    sources: np.ndarray
    tokens: np.ndarray
    base: np.ndarray | None
    steps: np.ndarray
    sums: np.ndarray

    @property
    def first(self) -> np.ndarray | None:
        """(N,) of the earliest evaluation of the trained model; None without one."""
        return self.sums[0] if len(self.sums) else None

    @property
    def last(self) -> np.ndarray | None:
        """(N,) of the newest evaluation of the trained model; None without one."""
        return self.sums[-1] if len(self.sums) else None


_read: Recent[tuple[Any, ...], HeldOutLosses] = Recent(24)


def held_out_losses(run: RunDir) -> HeldOutLosses | None:
    """None where the run wrote none (it held no rows out, or an earlier lab made it), or where the
    file is damaged."""
    identity = file_identity(run.held_out)
    if not identity or identity[1] > MAX_FILE_BYTES:
        return None
    key = (str(run.path), *identity)
    losses = _read.get(key)
    if losses is None:
        losses = _parse(read_lines(run.held_out)[0])
        if losses is not None:
            _read.put(key, losses)
    return losses


def _parse(records: list[dict[str, Any]]) -> HeldOutLosses | None:
    heading = next((record for record in records if record.get("kind") == "rows"), {})
    sources, tokens = _row(heading.get("sources")), _row(heading.get("tokens"))
    if sources is None or tokens is None or len(sources) != len(tokens) or not tokens.sum():
        return None
    base, evaluations = None, []
    for record in continuous(records, "losses"):
        sums = _row(record.get("sums"))
        if sums is None or len(sums) != len(tokens):
            continue
        if record.get("of") == "base":
            base = sums
        else:
            evaluations.append((float(record["step"]), sums))
    return HeldOutLosses(
        rows_hash=str(heading.get("hash", "")),
        sources=sources.astype(np.int64),
        tokens=tokens,
        base=base,
        steps=np.array([step for step, _ in evaluations], dtype=np.float64),
        sums=np.array([sums for _, sums in evaluations]).reshape(-1, len(tokens)),
    )


def _row(values: Any) -> np.ndarray | None:
    """(N,) float64; None unless all are finite numbers."""
    if not isinstance(values, list) or not values:
        return None
    if any(finite_number(value) is None for value in values):
        return None
    return np.array(values, dtype=np.float64)
