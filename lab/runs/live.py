"""The growing series of a run, read once and shared by everybody who looks.

Only the new tail of `metrics.jsonl` is parsed at each look. Columns are plain double arrays, so
that a chart of a long run costs no conversion.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import operator
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from tsdownsample import NaNMinMaxLTTBDownsampler

from lab.paths import RunDir

KEPT_RUNS = 12
CHUNK = 1 << 23  # bytes parsed at once
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

    def extend(self, records: list[dict[str, Any]]) -> None:
        """Add many records at once; the plain ones, which are nearly all, column by column."""
        for record in records[:1]:
            self.add(record)  # it may begin an attempt
        rest = records[1:]
        if rest and not self._append_columns(rest):
            for record in rest:
                self.add(record)

    def _append_columns(self, records: list[dict[str, Any]]) -> bool:
        """Add records that have the same keys, numbers under each, and no attempt of their own;
        False, and nothing added, if they are not like that."""
        keys = list(records[0])
        if len(keys) < 2 or "of" in keys or set(map(len, records)) != {len(keys)}:
            return False
        try:
            rows = list(map(operator.itemgetter(*keys), records))
        except KeyError:
            return False
        found: dict[str, array[float]] = {}
        for key, values in zip(keys, zip(*rows, strict=True), strict=True):
            kinds = set(map(type, values))
            if kinds <= {int, float}:
                try:
                    found[key] = array("d", values)
                except OverflowError:  # an integer of thousands of digits
                    return False
            elif kinds & {int, float} or key in ("step", "attempt"):
                return False
        if "attempt" in keys and set(found["attempt"]) != {float(self.attempt)}:
            return False
        for key in found.keys() - self._columns.keys():
            self._columns[key] = array("d", [math.nan]) * self.length
        for key, column in self._columns.items():
            column.extend(found.get(key) or array("d", [math.nan]) * len(records))
        self.length += len(records)
        return True

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


def parse(data: bytes) -> list[Any]:
    """The values of whole lines of JSON; a damaged line is passed over."""
    lines = data.splitlines()
    try:
        return list(orjson.loads(b"[" + b",".join(lines) + b"]"))
    except ValueError:
        pass
    values = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            values.append(json.loads(line))  # it knows NaN and long integers, too
    return values


@contextlib.contextmanager
def _no_collection(size: int) -> Iterator[None]:
    """Hundreds of thousands of new dictionaries make the collector look at all of them again and
    again: a third of the time of opening a long run."""
    pauses = size > 1 << 20 and gc.isenabled()
    if pauses:
        gc.disable()
    try:
        yield
    finally:
        if pauses:
            gc.enable()


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
        now = os.fstat(file.fileno())
        identity = (now.st_dev, now.st_ino)
        if identity != self.identity or now.st_size < self.offset:
            self.identity, self.offset = identity, 0
            self.kinds = {kind: Columns() for kind in KINDS}
        file.seek(self.offset)
        while data := file.read(CHUNK):
            end = data.rfind(b"\n") + 1
            if not end and len(data) < CHUNK:
                return  # an unfinished line
            end = end or len(data)  # no worker writes such a line: pass over it
            self.offset += end
            file.seek(self.offset)
            with _no_collection(len(data)):
                self._add(parse(data[:end]))

    def _add(self, records: list[Any]) -> None:
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for record in records:
            kind = record.get("kind") if isinstance(record, dict) else None
            if isinstance(kind, str) and kind in found:
                found[kind].append(record)
        for kind, same in found.items():
            self.kinds[kind].extend(same)

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
