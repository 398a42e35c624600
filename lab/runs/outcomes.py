"""What a run has come to: its evaluation loss against the base, and its bytes on disk."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

from lab import json_text
from lab.atomic_files import file_identity, size_of
from lab.metrics import is_number
from lab.paths import RunDir
from lab.recent import Recent
from lab.runs.record_reader import continuous

Key = tuple[Any, ...]  # the path of a run, and identities of its files
MAX_RUNS = 20_000


@dataclass(frozen=True)
class Outcome:
    """Evaluation losses in nats a token, None where nothing was measured; size in bytes."""

    base_loss: float | None
    loss: float | None
    bytes: int

    @property
    def difference(self) -> float | None:
        """To the base: below zero is better."""
        if self.loss is None or self.base_loss is None:
            return None
        return self.loss - self.base_loss


_losses: Recent[Key, tuple[float | None, float | None]] = Recent(MAX_RUNS)
_sizes: Recent[Key, int] = Recent(MAX_RUNS)


def outcome(run: RunDir) -> Outcome:
    """Read again only when the records or the folders of the run have changed."""
    records = (str(run.path), file_identity(run.metrics))
    losses = _losses.get(records) or _losses.put(records, _read_losses(run))
    folders = (run.path, run.artifact, run.checkpoints, run.exports, run.result, run.metrics)
    contents = (str(run.path), *map(file_identity, folders))
    size = _sizes.get(contents)
    if size is None:
        size = _sizes.put(contents, size_of(run.path))
    return Outcome(*losses, size)


def _read_losses(run: RunDir) -> tuple[float | None, float | None]:
    """(of the base, of the newest evaluation). Only the lines of evaluations are parsed: a long
    run has thousands of others."""
    evaluations = []
    try:
        with run.metrics.open("rb") as file:
            for line in file:
                if b'"eval' in line and line.endswith(b"\n"):
                    with contextlib.suppress(ValueError):  # a damaged line
                        evaluations.append(json_text.parse(line, unique=False))
    except OSError:
        return None, None  # nothing written yet
    measured = [
        record
        for record in evaluations
        if isinstance(record, dict)
        and is_number(record.get("eval/loss"))
        and math.isfinite(record["eval/loss"])
    ]
    base = [record for record in measured if record.get("of") == "base"]
    trained = continuous([record for record in measured if record.get("of") != "base"], "eval")
    return _newest(base), _newest(trained)


def _newest(records: list[dict[str, Any]]) -> float | None:
    return float(records[-1]["eval/loss"]) if records else None
