"""What a worker wrote, read back: whole lines only, and later attempts over earlier ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.paths import RunDir
from lab.runs import record_reader


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def write(path: Path, *records: Any) -> None:
    with path.open("a") as file:
        file.writelines(
            (record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records
        )


def train(step: int, attempt: int = 1, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "attempt": attempt, **more}


def test_offsets_add_up_over_many_looks(run: RunDir) -> None:
    write(run.metrics, *[train(step) for step in range(1, 4)])
    records, offset = record_reader.read_lines(run.metrics)
    assert [record["step"] for record in records] == [1, 2, 3]
    for step in (4, 5):
        write(run.metrics, train(step))
        records, offset = record_reader.read_lines(run.metrics, offset)
        assert [record["step"] for record in records] == [step], "Only what is new."
    assert offset == run.metrics.stat().st_size
    assert record_reader.read_lines(run.metrics, offset) == ([], offset)
    assert record_reader.read_lines(run.path / "none", 7) == ([], 7)


def test_a_line_that_is_still_written_waits_even_if_it_is_json_already(run: RunDir) -> None:
    run.metrics.write_text('{"kind": "train", "step": 1}')
    assert record_reader.read_lines(run.metrics) == ([], 0)


def test_a_damaged_line_hides_no_other(run: RunDir) -> None:
    write(run.metrics, train(1), "not json", "[1]", "[" * 100_000, train(2))
    assert [record["step"] for record in record_reader.metrics(run, "train")] == [1, 2]


def test_a_later_attempt_supersedes_from_its_first_step_on(run: RunDir) -> None:
    write(run.metrics, *[train(step, loss=1) for step in range(1, 9)])
    write(run.metrics, *[train(step, 2, loss=2) for step in (5, 6)])
    write(run.metrics, *[train(step, 3, loss=3) for step in (6, 7)])
    losses = [(record["step"], record["loss"]) for record in record_reader.metrics(run, "train")]
    assert losses == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 3), (7, 3)]


def test_samples_of_the_device_are_never_superseded(run: RunDir) -> None:
    write(run.metrics, *[{"kind": "device", "attempt": 1, "time": time} for time in (1, 2)])
    write(run.metrics, {"kind": "device", "attempt": 2, "time": 3})
    assert [record["time"] for record in record_reader.metrics(run, "device")] == [1, 2, 3]
    assert record_reader.metrics(run, "train") == []


def test_the_newest_event_of_a_kind(run: RunDir) -> None:
    assert record_reader.last_event(run, "data") == {}
    write(run.events, {"kind": "data", "n": 1}, {"kind": "data", "n": 2}, {"kind": "plan", "n": 3})
    assert record_reader.last_event(run, "data")["n"] == 2
    assert [event["n"] for event in record_reader.events(run)] == [1, 2, 3]
    assert [event["n"] for event in record_reader.events(run, "plan")] == [3]


def test_the_loss_of_the_base_is_the_bases(run: RunDir) -> None:
    assert record_reader.base_loss(run) is None
    write(run.metrics, {"kind": "eval", "step": 0, "attempt": 1, "eval/loss": 1.5})
    assert record_reader.base_loss(run) is None, "That was no base."
    write(run.metrics, {"kind": "eval", "of": "base", "step": 1, "attempt": 1, "eval/loss": "low"})
    write(run.metrics, {"kind": "eval", "of": "base", "step": 1, "attempt": 1, "eval/loss": 3.0})
    write(run.metrics, {"kind": "eval", "of": "base", "step": 2, "attempt": 1, "eval/loss": 4.0})
    assert record_reader.base_loss(run) == 3.0, "As it was first measured."


def test_the_end_of_a_text_starts_with_a_line(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text("".join(f"line {number}\n" for number in range(100)))
    end = record_reader.tail(file, size=25)
    assert end.splitlines() == ["line 97", "line 98", "line 99"]
    assert (
        record_reader.tail(file) == file.read_text() and record_reader.tail(tmp_path / "none") == ""
    )
