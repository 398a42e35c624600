"""Records as columns, one by one and in bulk."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from lab.runs import metric_columns
from lab.runs.metric_columns import Columns

Records = list[dict[str, Any]]


def step(number: int, attempt: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": number,
        "attempt": attempt,
        "a": number / 7,
        "b": -number,
        **more,
    }


def read(records: Records) -> dict[str, Columns]:
    """All at once, as from a file."""
    kinds = {kind: Columns() for kind in metric_columns.KINDS}
    metric_columns.add_lines(
        b"".join(json.dumps(record).encode() + b"\n" for record in records), kinds
    )
    return kinds


def singly(records: Records) -> dict[str, Columns]:
    kinds = {kind: Columns() for kind in metric_columns.KINDS}
    for record in records:
        metric_columns.add_lines(json.dumps(record).encode() + b"\n", kinds)
    return kinds


def test_many_plain_records_are_not_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    add = Columns.add

    def counted(self: Columns, record: dict[str, Any]) -> None:
        calls.append(1)
        add(self, record)

    monkeypatch.setattr(Columns, "add", counted)
    records = [step(number) for number in range(1, 5001)]
    train = read(records)["train"]
    assert train.length == 5000 and len(calls) < 10, f"{len(calls)} records went one by one."
    assert train.get("a").tolist() == [number / 7 for number in range(1, 5001)]
    assert train.get("b").tolist() == [-float(number) for number in range(1, 5001)]
    assert train.get("step").tolist() == [float(number) for number in range(1, 5001)]


MANY = range(1, 1500)
CASES: dict[str, Records] = {
    "a column that begins late": [step(n, **({"late": n} if n > 700 else {})) for n in MANY],
    "a column that is missing now and then": [step(n, **({"c": n} if n % 3 else {})) for n in MANY],
    "a second attempt": [*[step(n) for n in MANY], *[step(n, 2) for n in range(800, 1600)]],
    "a second attempt that goes on": [
        *[step(n) for n in MANY], *[step(n, 2) for n in range(1500, 3000)],
    ],
    "the base and evaluations": [
        {"kind": "eval", "of": "base", "step": 0, "attempt": 1, "eval/loss": 3.0},
        *[{"kind": "eval", "step": n, "attempt": 1, "eval/loss": 1 / n} for n in MANY],
    ],
    "three kinds in turn": [
        one
        for n in MANY
        for one in (step(n), {"kind": "device", "time": 1e9 + n, "cpu/rss_bytes": n * 10**6})
    ],
    "words, truth and nothing": [
        *[step(n) for n in MANY], step(1500, a="x"), step(1501, a=True), step(1502, a=None),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_many_records_at_once_are_the_same_columns(name: str) -> None:
    at_once, one_by_one = read(CASES[name]), singly(CASES[name])
    for kind in metric_columns.KINDS:
        columns, expected = at_once[kind], one_by_one[kind]
        assert columns.length == expected.length, kind
        assert columns.base == expected.base
        for key in ("step", "a", "b", "c", "late", "eval/loss", "time", "cpu/rss_bytes"):
            assert columns.has(key) == expected.has(key), key
            assert np.array_equal(columns.get(key), expected.get(key), equal_nan=True), (kind, key)


def test_columns_say_what_the_records_said() -> None:
    columns = Columns()
    for record in (
        step(1),
        step(2, late=5.0),
        {"kind": "train", "step": 3, "attempt": 1, "a": True, "b": "x"},
        step(4, late=7.0),
    ):
        columns.add(record)
    assert columns.get("step").tolist() == [1, 2, 3, 4]
    late = columns.get("late")
    assert math.isnan(late[0]) and late[1] == 5.0 and math.isnan(late[2]) and late[3] == 7.0
    assert math.isnan(columns.get("a")[2]), "Truth is no number."
    assert columns.last("late") == 7.0 and columns.last("b") == -4.0
    for number in (4, 5):
        columns.add(step(number, 2, late=number * 10))
    assert columns.get("step").tolist() == [1, 2, 3, 4, 5], "Step 4 was done again."
    assert columns.get("late").tolist()[3:] == [40.0, 50.0]


def test_the_base_is_no_point_of_the_series() -> None:
    eval = read(CASES["the base and evaluations"])["eval"]
    assert eval.base is not None and eval.base["eval/loss"] == 3.0
    assert eval.length == len(MANY) and eval.get("step")[0] == 1
    many_bases = [*CASES["the base and evaluations"], CASES["the base and evaluations"][0]]
    assert read(many_bases)["eval"].length == len(MANY)
    unmeasured = Columns()
    unmeasured.add({"kind": "eval", "of": "base", "step": 0})
    assert unmeasured.base is None and unmeasured.length == 0


def test_the_last_value_is_that_of_the_last_record() -> None:
    columns = Columns()
    columns.add(step(1, late=5.0))
    columns.add(step(2))
    assert columns.last("late") is None, "What was said two steps ago is not said now."
    assert columns.last("a") == 2 / 7 and columns.last("never") is None
