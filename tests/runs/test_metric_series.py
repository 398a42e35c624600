"""The shared series of a run: read on, read anew where the file is another, and drawn."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.paths import RunDir
from lab.runs import metric_series as series


def lines(first: int, last: int, value: float = 1.0) -> str:
    return "".join(
        json.dumps({"kind": "train", "step": step, "attempt": 1, "x": value}) + "\n"
        for step in range(first, last + 1)
    )


def test_another_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.metrics.write_text(lines(1, 5))
    result = series.MetricSeries(run).refresh()
    assert result.train.length == 5
    other = tmp_path / "other"
    other.write_text(lines(1, 9, value=2.0))
    other.replace(run.metrics)  # as an import or a restored copy does
    assert result.refresh().train.get("x").tolist() == [2.0] * 9
    with run.metrics.open("r+") as file:  # the same file, shorter
        file.truncate(0)
        file.write(lines(1, 2, value=3.0))
    assert result.refresh().train.get("x").tolist() == [3.0, 3.0]
    with run.metrics.open("a") as file:
        file.write(lines(3, 4, value=3.0))
    assert result.refresh().train.length == 4


def test_a_line_longer_than_a_piece_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "CHUNK", 4096)
    run = RunDir(tmp_path)
    run.metrics.write_text(lines(1, 3) + "x" * 10_000 + "\n" + lines(4, 200))
    result = series.MetricSeries(run).refresh()
    assert result.train.get("step").tolist()[:3] == [1, 2, 3]
    assert result.train.get("step").tolist()[-1] == 200
    assert result.offset == run.metrics.stat().st_size


def test_pieces_are_cut_between_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "CHUNK", 1000)
    run = RunDir(tmp_path)
    run.metrics.write_text(lines(1, 500))
    assert series.MetricSeries(run).refresh().train.get("step").tolist() == list(range(1, 501))


def test_the_runs_that_nobody_looks_at_are_forgotten(tmp_path: Path) -> None:
    runs = []
    for number in range(series.CACHE_SIZE + 1):
        (tmp_path / str(number)).mkdir()
        runs.append(RunDir(tmp_path / str(number)))
    first = series.series_of(runs[0])
    for run in runs[1:-1]:
        series.series_of(run)
    assert series.series_of(runs[0]) is first, "As many as are kept, and it was just looked at."
    second = series.series_of(runs[1])
    series.series_of(runs[0])
    series.series_of(runs[1])
    series.series_of(runs[-1])
    assert series.series_of(runs[0]) is first and series.series_of(runs[1]) is second
    assert len(series._series) <= series.CACHE_SIZE


def test_a_mean_that_moves_weighs_what_came_before() -> None:
    """With 0.75 each earlier value counts three quarters of the next one."""
    values = np.array([8.0, 4.0, 0.0])
    expected = [8.0, (8 * 0.75 + 4) / 1.75, (8 * 0.5625 + 4 * 0.75) / (0.5625 + 0.75 + 1)]
    assert series.ema(values, 0.75).tolist() == pytest.approx(expected)
    gap = series.ema(np.array([8.0, np.nan, 4.0]), 0.75)
    assert gap[2] == pytest.approx(expected[1]), "A gap weighs nothing."


def test_short_series_stay_as_they_are() -> None:
    x = np.arange(series.MAX_POINTS, dtype=float)
    thin_x, thin_y = series.downsample(x, x * 2)
    assert thin_x is x and len(thin_y) == len(x)
    assert len(series.downsample(np.arange(10_000.0), np.arange(10_000.0))[0]) == series.MAX_POINTS


def test_as_many_runs_as_are_compared_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty-six runs in the same order, look after look, and one more beside them."""
    runs = [RunDir(tmp_path / str(number)) for number in range(37)]
    for run in runs:
        run.path.mkdir()
        run.metrics.write_text(lines(1, 3))
    parsed: list[int] = []
    add = series.add_lines
    monkeypatch.setattr(
        series, "add_lines", lambda data, kinds: parsed.append(len(data)) or add(data, kinds)
    )
    for _ in range(3):
        for run in runs:
            assert series.series_of(run).train.length == 3
    assert sum(parsed) == sum(run.metrics.stat().st_size for run in runs), "A line is read twice."


def test_long_runs_are_kept_as_far_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [RunDir(tmp_path / name) for name in "abc"]
    for run in runs:
        run.path.mkdir()
        run.metrics.write_text(lines(1, 100))
    size = series.series_of(runs[0]).bytes
    assert size == 100 * 3 * 8, "Three numbers of a hundred records."
    monkeypatch.setattr(series, "MAX_BYTES", 2 * size)
    cached = {run.path.name: series.series_of(run) for run in runs}
    assert series.series_of(runs[2]) is cached["c"] and series.series_of(runs[1]) is cached["b"]
    assert series.series_of(runs[0]) is not cached["a"], "The least recently used one went."
    monkeypatch.setattr(series, "MAX_BYTES", 1)
    with runs[0].metrics.open("a") as file:
        file.write(lines(101, 102))
    longest = series.series_of(runs[0])
    assert longest.train.length == 102
    assert series.series_of(runs[0]) is longest, "What is looked at stays, whatever its size."


def test_two_who_look_at_once_read_a_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, add = RunDir(tmp_path), series.add_lines
    run.metrics.write_text(lines(1, 5))

    def slowly(data: bytes, kinds: Any) -> None:
        time.sleep(0.1)
        add(data, kinds)

    monkeypatch.setattr(series, "add_lines", slowly)
    shared = series.MetricSeries(run)
    with ThreadPoolExecutor(3) as pages:
        list(pages.map(lambda _: shared.refresh(), range(3)))
    assert shared.train.get("step").tolist() == [1, 2, 3, 4, 5]
