"""Thousands of records become columns without a dictionary for each, and as one by one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lab.runs import columns
from lab.runs.columns import Columns


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def train(first: int, last: int, attempt: int = 1) -> list[dict[str, Any]]:
    return [
        {"v": 1, "kind": "train", "attempt": attempt, "step": n, "train/loss": n / 7}
        for n in range(first, last)
    ]


def fresh() -> dict[str, Columns]:
    return {kind: Columns() for kind in columns.KINDS}


def test_a_long_file_is_not_read_record_by_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three thousand plain records; a handful may be looked at one by one."""
    added: list[Any] = []
    add = Columns.add

    def note(self: Columns, record: dict[str, Any]) -> None:
        added.append(record)
        add(self, record)

    monkeypatch.setattr(Columns, "add", note)
    data = lines(train(1, 3001))
    assert len(data) > columns.IN_BULK
    kinds = fresh()
    columns.add_lines(data, kinds)
    assert kinds["train"].length == 3000 and len(added) < 10
    assert kinds["train"].get("step").tolist() == list(range(1, 3001))
    assert kinds["train"].get("train/loss").tolist() == [n / 7 for n in range(1, 3001)]


@pytest.mark.parametrize("case", ["plain", "resumed", "base", "gaps", "odd"])
def test_in_bulk_and_one_by_one_are_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    records = train(1, 1500)
    device = [
        {"v": 1, "kind": "device", "attempt": 1, "seconds": n / 2, "cpu/rss_bytes": n, "phase": "x"}
        for n in range(1200)
    ]
    evals = [
        {"v": 1, "kind": "eval", "attempt": 1, "step": n, "eval/loss": 2.0 + n} for n in range(900)
    ]
    if case == "resumed":
        records += train(1000, 1400, attempt=2)
    if case == "base":
        evals.insert(0, {"v": 1, "kind": "eval", "attempt": 1, "step": 0, "of": "base",
                         "eval/loss": 9.0})  # fmt: skip
    if case == "gaps":
        del records[700]["train/loss"]
    if case == "odd":
        records[700]["train/loss"] = None
    data = lines([*records, *device, *evals])
    in_bulk, one_by_one = fresh(), fresh()
    columns.add_lines(data, in_bulk)
    monkeypatch.setattr(columns, "IN_BULK", len(data) + 1)
    columns.add_lines(data, one_by_one)
    for kind in columns.KINDS:
        ours, theirs = in_bulk[kind], one_by_one[kind]
        assert ours.length == theirs.length > 0 and ours.base == theirs.base, kind
        for key in ("step", "seconds", "train/loss", "eval/loss", "cpu/rss_bytes", "attempt"):
            assert ours.has(key) == theirs.has(key), (kind, key)
            assert np.array_equal(ours.get(key), theirs.get(key), equal_nan=True), (kind, key)
    if case == "base":
        assert in_bulk["eval"].base is not None and in_bulk["eval"].base["eval/loss"] == 9.0
        assert in_bulk["eval"].get("eval/loss")[0] == 2.0, "the base's loss is no loss of the run"
    if case == "resumed":
        assert in_bulk["train"].get("step").tolist() == list(range(1, 1400))
        assert in_bulk["train"].get("attempt").tolist() == [1] * 999 + [2] * 400
