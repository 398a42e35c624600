"""Detects the format of a dataset from its first records, without a tokenizer."""

from __future__ import annotations

import time
from typing import Any

from lab.data import catalog
from lab.data.formats import columns_of, detect
from lab.data.preview_types import Detection
from lab.data.readers import InvalidRow, RecordReader

FIRST = 5
SECONDS = 2.0
MAX_INVALID = 10_000  # rows that cannot be read before the first that can


def detected(dataset_id: str) -> Detection:
    """The format of the first rows. Raises LabError."""
    dataset = catalog.resolve(dataset_id)
    first: list[Any] = []
    values = RecordReader(dataset.path, time.monotonic() + SECONDS)
    for index, (_, value) in enumerate(values):
        if not isinstance(value, InvalidRow):
            first.append(value)
        if len(first) >= FIRST or index > MAX_INVALID:
            break
    names = tuple(sorted({str(key) for row in first if isinstance(row, dict) for key in row}))
    try:
        shape = detect(first[0]) if first else ""
    except InvalidRow as reason:
        return Detection("", {}, names, str(reason))
    if not first:
        return Detection("", {}, (), "no row of it can be read")
    return Detection(shape, columns_of(first[0], shape), names)
