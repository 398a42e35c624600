"""The growing series of a run, read once and shared by everybody who looks.

Only the new tail of `metrics.jsonl` is parsed at each look.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
from tsdownsample import NaNMinMaxLTTBDownsampler

from lab import collector
from lab.paths import RunDir
from lab.recent import Recent
from lab.runs.metric_columns import KINDS, Columns, add_lines

# Whoever compares twelve contestants with three seeds each reads 36 runs, one after the other, at
# each look: with fewer entries every one of them would be gone again before its turn.
CACHE_SIZE = 64
MAX_BYTES = 800_000_000  # of the columns of all runs; one of 100,000 steps has 16 MB
CHUNK = 1 << 23  # bytes parsed at once
MAX_POINTS = 2_000
AXES = ("step", "tokens", "seconds")


class MetricSeries:
    """The series of one run, brought up to date by `refresh`."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.offset = 0
        self.identity = (0, 0)
        self.lock = threading.Lock()
        self.kinds = {kind: Columns() for kind in KINDS}
        self.bytes = 0

    def refresh(self) -> MetricSeries:
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
            with collector.paused():  # a third of the time of opening a long run
                add_lines(data[:end], self.kinds)
            self.bytes = sum(columns.bytes for columns in self.kinds.values())

    @property
    def train(self) -> Columns:
        return self.kinds["train"]

    @property
    def evaluation(self) -> Columns:
        return self.kinds["eval"]

    @property
    def device(self) -> Columns:
        return self.kinds["device"]

    @property
    def probe(self) -> Columns:
        return self.kinds["probe"]


_series: Recent[str, MetricSeries] = Recent(CACHE_SIZE)


def series_of(run: RunDir) -> MetricSeries:
    """The shared series of `run`, up to date. The least recently seen runs are forgotten."""
    series = _series.get_or(str(run.path), lambda: MetricSeries(run))
    before = series.bytes
    series.refresh()
    if series.bytes != before:
        _series.shrink(MAX_BYTES, lambda each: each.bytes)
    return series


def downsample(
    x: np.ndarray, y: np.ndarray, most: int = MAX_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points of a series, spikes and gaps kept."""
    if len(x) <= most:
        return x, y
    chosen = NaNMinMaxLTTBDownsampler().downsample(x, y, n_out=most)
    return x[chosen], y[chosen]


def ema(y: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average with its start corrected; `weight` 0 leaves `y` as it is."""
    if weight <= 0 or len(y) < 2:
        return y
    import pandas as pd

    series = pd.Series(y)
    return np.asarray(series.ewm(alpha=1 - weight, adjust=True, ignore_na=True).mean())
