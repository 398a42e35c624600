"""The growing series of a run, read once and shared by everybody who looks.

Only the new tail of `metrics.jsonl` is parsed at each look. Columns are plain double arrays, so
that a chart of a long run costs no conversion.
"""

from __future__ import annotations

import json
import math
import os
import threading
from array import array
from collections import OrderedDict
from typing import Any

import numpy as np
from tsdownsample import NaNMinMaxLTTBDownsampler

from lab.paths import RunDir

KEPT_RUNS = 12
MOST_POINTS = 2_000
AXES = ("step", "tokens", "seconds")
KINDS = ("train", "eval", "device")


def is_number(value: Any) -> bool:
    """Whether `value` fits into a double; the file may hold anything."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 1 << 1000


class Columns:
    """Records of one kind as columns; a value that a record lacks is NaN."""

    def __init__(self) -> None:
        self.length = 0
        self.attempt = 0
        self.base: dict[str, Any] | None = None
        self._columns: dict[str, array[float]] = {}

    def add(self, record: dict[str, Any]) -> None:
        numbers = {key: value for key, value in record.items() if is_number(value)}
        if record.get("of") == "base":
            self.base = numbers if "eval/loss" in numbers else self.base
            return
        if "step" in record and "step" not in numbers:
            return  # a damaged line
        attempt = numbers.get("attempt", 1)
        if "step" in numbers and attempt > self.attempt:
            self.attempt = attempt
            self._drop_from(numbers["step"])
        for key, value in numbers.items():
            if key not in self._columns:
                self._columns[key] = array("d", [math.nan]) * self.length
            self._columns[key].append(value)
        self.length += 1
        for column in self._columns.values():
            if len(column) < self.length:
                column.append(math.nan)

    def _drop_from(self, step: float) -> None:
        """Forget what a later attempt does again."""
        steps = self._columns.get("step", array("d"))
        while self.length and steps[self.length - 1] >= step:
            for column in self._columns.values():
                column.pop()
            self.length -= 1

    def get(self, key: str) -> np.ndarray:
        """A copy of one column, (length,) float64; NaN where nothing was said."""
        column = self._columns.get(key)
        if column is None:
            return np.full(self.length, np.nan)
        return np.array(column, dtype=np.float64)

    def last(self, key: str) -> float | None:
        column = self._columns.get(key)
        return column[-1] if column and not math.isnan(column[-1]) else None

    def has(self, key: str) -> bool:
        return key in self._columns


class Live:
    """The series of one run, brought up to date by `refresh`."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.offset = 0
        self.identity = (0, 0)
        self.lock = threading.Lock()
        self.kinds = {kind: Columns() for kind in KINDS}

    def refresh(self) -> Live:
        """Read what was appended since the last look. Safe from many threads."""
        with self.lock:
            try:
                with self.run.metrics.open("rb") as file:
                    self._read(file)
            except OSError:
                pass  # nothing written yet
        return self

    def _read(self, file: Any) -> None:
        found = os.fstat(file.fileno())
        identity = (found.st_dev, found.st_ino)
        if identity != self.identity or found.st_size < self.offset:
            self.identity, self.offset = identity, 0
            self.kinds = {kind: Columns() for kind in KINDS}
        file.seek(self.offset)
        data = file.read()
        end = data.rfind(b"\n") + 1
        self.offset += end
        for line in data[:end].splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            kind = record.get("kind") if isinstance(record, dict) else None
            if isinstance(kind, str) and kind in self.kinds:
                self.kinds[kind].add(record)

    @property
    def train(self) -> Columns:
        return self.kinds["train"]

    @property
    def held_out(self) -> Columns:
        return self.kinds["eval"]

    @property
    def device(self) -> Columns:
        return self.kinds["device"]


_kept: OrderedDict[str, Live] = OrderedDict()
_lock = threading.Lock()


def live(run: RunDir) -> Live:
    """The shared series of `run`, up to date. The least recently seen runs are forgotten."""
    key = str(run.path)
    with _lock:
        found = _kept.pop(key, None) or Live(run)
        _kept[key] = found
        while len(_kept) > KEPT_RUNS:
            _kept.popitem(last=False)
    return found.refresh()


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points of a series, spikes and gaps kept."""
    if len(x) <= most:
        return x, y
    chosen = NaNMinMaxLTTBDownsampler().downsample(x, y, n_out=most)
    return x[chosen], y[chosen]


def smooth(y: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average with its start corrected; `weight` 0 leaves `y` as it is."""
    if weight <= 0 or len(y) < 2:
        return y
    import pandas as pd

    series = pd.Series(y)
    return np.asarray(series.ewm(alpha=1 - weight, adjust=True, ignore_na=True).mean())
