"""Records of a run as columns of numbers.

Many records become columns without a dictionary for each: msgspec decodes the lines into objects
of fixed fields, several times as fast. What is not as plain as that goes record by record.
pyarrow.json was tried: the same processor time (0.27 against 0.29 s for 35 MB), but four times as
long to import, a date for a text that looks like a date, and null as a key that is missing.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import operator
from array import array
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from lab.metrics import is_number

KINDS = ("train", "eval", "device", "probe")
IN_BULK = 1 << 16  # minimum size in bytes for the bulk decoder to pay off
Keys = tuple[str, ...]


class Columns:
    """Records of one kind as columns; a value that a record lacks is NaN."""

    def __init__(self) -> None:
        self.length = 0
        self.attempt = 0
        self.base: dict[str, Any] | None = None
        self._columns: dict[str, array[float]] = {}

    @property
    def bytes(self) -> int:
        return 8 * self.length * len(self._columns)

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

    def append(self, keys: tuple[str, ...], rows: np.ndarray) -> bool:
        """Add `rows`, (records, keys) float64; False, and nothing added, if an attempt begins in
        them, which would take back earlier records."""
        if "attempt" not in keys or not (rows[:, keys.index("attempt")] == self.attempt).all():
            return False
        for key in keys:
            if key not in self._columns:
                self._columns[key] = array("d", [math.nan]) * self.length
        for key, column in self._columns.items():
            if key in keys:
                column.frombytes(rows[:, keys.index(key)].tobytes())
            else:
                column.extend(array("d", [math.nan]) * len(rows))
        self.length += len(rows)
        return True

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


def add_lines(data: bytes, kinds: dict[str, Columns]) -> None:
    """Add whole lines of JSON to the columns of their kinds; a damaged line is passed over."""
    if len(data) < IN_BULK or not add_in_bulk(data, kinds):
        for line in data.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)  # it knows NaN and long integers, too
                kind = record.get("kind") if isinstance(record, dict) else None
                if isinstance(kind, str) and kind in kinds:
                    kinds[kind].add(record)


def add_in_bulk(data: bytes, kinds: dict[str, Columns]) -> bool:
    """Add lines whose records have the keys of the first or last of their kind; False, and nothing
    added, if there are others."""
    keys = {kind: kind_keys for kind in KINDS if (kind_keys := _keys(data, kind)) is not None}
    shapes = {kind: _shape(kind, *keys[kind]) for kind in keys}
    if not shapes:
        return False
    try:
        rows = _decoder(tuple(shapes.values())).decode_lines(data)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return False
    for kind, shape in shapes.items():
        numbers, others = keys[kind]
        same = [row for row in rows if type(row) is shape]
        kinds[kind].add(_record(same[0], numbers + others))  # it may begin an attempt
        del same[0]
        values = map(msgspec.structs.astuple, same)
        if others:
            values = map(operator.itemgetter(slice(len(numbers))), values)
        table = np.fromiter(chain.from_iterable(values), np.float64, len(same) * len(numbers))
        table = table.reshape(len(same), len(numbers))
        if "of" in others or not kinds[kind].append(numbers, table):
            for row in same:
                kinds[kind].add(_record(row, numbers + others))
    return True


def _record(row: msgspec.Struct, keys: Keys) -> dict[str, Any]:
    values = zip(keys, msgspec.structs.astuple(row), strict=True)
    return {key: value for key, value in values if value is not msgspec.UNSET}


def _keys(data: bytes, kind: str) -> tuple[Keys, Keys] | None:
    """(keys of numbers, other keys) of the first and last record of a kind; None without one."""
    mark = f'"kind": "{kind}"'.encode()
    record_keys: dict[str, Any] = {}
    for offset in (data.rfind(mark), data.find(mark)):
        if offset < 0:
            return None
        end = data.find(b"\n", offset)
        try:
            record = json.loads(data[data.rfind(b"\n", 0, offset) + 1 : end])
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or record.pop("kind", None) != kind:
            return None
        record_keys |= record
    numbers = tuple(key for key, value in record_keys.items() if is_number(value))
    return numbers, tuple(key for key in record_keys if key not in numbers)


@functools.lru_cache(maxsize=64)
def _shape(kind: str, numbers: Keys, others: Keys) -> type[msgspec.Struct]:
    """A type for the records of a kind, fields in the order of `numbers`, then `others`."""
    names = {f"field{index}": key for index, key in enumerate(numbers + others)}
    fields: list[tuple[str, Any, Any]] = [
        (name, float, math.nan) if key in numbers else (name, Any, msgspec.UNSET)
        for name, key in names.items()
    ]
    return msgspec.defstruct(
        kind.title(),
        fields,
        rename=names,
        tag_field="kind",
        tag=kind,
        forbid_unknown_fields=True,
        gc=False,
    )


@functools.lru_cache(maxsize=64)
def _decoder(shapes: tuple[type[msgspec.Struct], ...]) -> msgspec.json.Decoder[Any]:
    union: Any = shapes[0]
    for shape in shapes[1:]:
        union |= shape
    return msgspec.json.Decoder(union)
