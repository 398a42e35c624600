"""The shared series: only the tail is read, spikes survive, attempts supersede."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np

from lab.paths import RunDir
from lab.runs import metric_columns
from lab.runs import metric_series as series
from lab.ui import charts, monitor_charts
from lab.ui.charts import View


def write(run: RunDir, *records: dict[str, object]) -> None:
    with run.metrics.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def steps(first: int, last: int, attempt: int = 1) -> list[dict[str, object]]:
    return [
        {"kind": "train", "step": step, "attempt": attempt, "train/loss": attempt + step / 1000}
        for step in range(first, last + 1)
    ]


def test_the_tail_is_added_and_attempts_supersede(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert series.series_of(run).train.length == 0
    write(run, *steps(1, 10))
    found = series.series_of(run)
    offset = found.offset
    with run.metrics.open("a") as file:
        file.write('{"kind": "train", "st')
    assert series.series_of(run).offset == offset, "an unfinished line waits"
    with run.metrics.open("a") as file:
        file.write('ep": 11, "attempt": 1, "train/loss": 0.0}\n')
    write(run, *steps(8, 9, attempt=2))
    train = series.series_of(run).train
    assert train.get("step").tolist() == [*range(1, 8), 8, 9]
    assert train.last("train/loss") == 2 + 9 / 1000
    assert np.isnan(train.get("not there")).all() and train.last("not there") is None


def test_zero_nan_and_none_are_three_things(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step, value in enumerate([1.0, 0.0, float("nan"), None, 2.0]):
        write(run, {"kind": "train", "step": step, "train/loss": value})
    losses = series.series_of(run).train.get("train/loss")
    assert losses[1] == 0.0 and np.isnan(losses[2]) and np.isnan(losses[3]) and losses[4] == 2.0


def test_many_readers_at_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, *steps(1, 2000))
    threads = [threading.Thread(target=series.series_of, args=(run,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert series.series_of(run).train.length == 2000


def test_thinning_keeps_spikes_and_gaps() -> None:
    x = np.arange(100_000, dtype=float)
    y = np.sin(x / 1000)
    y[54_321] = 50.0
    y[70_000] = np.nan
    thin_x, thin_y = series.downsample(x, y)
    assert len(thin_x) <= series.MAX_POINTS
    assert 50.0 in thin_y and np.isnan(thin_y).any()
    assert (np.diff(thin_x) > 0).all()


def test_smoothing_starts_at_the_first_value() -> None:
    y = np.array([4.0, 2.0, 2.0, 2.0])
    assert series.ema(y, 0.0) is y
    soft = series.ema(y, 0.9)
    assert soft[0] == 4.0 and 2.0 < soft[3] < 3.5


def test_a_chart_holds_what_it_says(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, {"kind": "eval", "of": "base", "step": 0, "eval/loss": 3.0})
    write(run, *steps(1, 30), {"kind": "eval", "step": 30, "eval/loss": 2.0})
    figure = charts.loss(series.series_of(run), View(smoothing=0.5, log=True, dark=True))
    named = {trace.name: trace for trace in figure.data}
    assert list(named["evaluation"].y) == [3.0, 2.0]
    assert named["training (raw)"].y[0] == 1.001 and figure.layout.yaxis.type == "log"
    assert figure.layout.uirevision, "zoom survives a refresh"


def test_a_chart_is_drawn_while_others_read_on(tmp_path: Path) -> None:
    """A column that grows between two looks at it would give x and y of different lengths."""
    run = RunDir(tmp_path)
    write(run, *steps(1, 3000))
    view, failed = View("step", 0.0, False, False), []

    def draw() -> None:
        try:
            for _ in range(20):
                monitor_charts.charts_of(series.series_of(run), view)
        except ValueError as error:
            failed.append(error)

    threads = [threading.Thread(target=draw, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    step = 3000
    while any(thread.is_alive() for thread in threads):
        step += 1
        write(run, *steps(step, step))
        series.series_of(run)
    assert failed == []


def test_many_records_at_once_are_as_one_by_one(tmp_path: Path) -> None:
    odd = [
        {"kind": "train", "step": 31, "attempt": 1, "train/loss": "low"},
        {"kind": "train", "step": 32, "attempt": 1, "train/loss": 10**400},
        {"kind": "train", "step": 33, "attempt": 1},
        {"kind": "train", "step": "x", "attempt": 1, "train/loss": 1.0},
    ]
    for name, records in (
        ("plain", steps(1, 30)),
        ("odd", [*steps(1, 30), *odd, *steps(34, 40)]),
        ("bare", [{"kind": "train"}] * 3),
        ("attempts", [*steps(1, 30), *steps(20, 40, attempt=2)]),
        ("nan", [*steps(1, 5), {"kind": "train", "step": 6, "train/loss": float("nan")}]),
    ):
        run = RunDir(tmp_path / name)
        run.path.mkdir()
        write(run, *records)
        at_once = series.MetricSeries(run).refresh().train
        one_by_one = metric_columns.Columns()
        for record in records:
            one_by_one.add(record)
        typed = {kind: metric_columns.Columns() for kind in metric_columns.KINDS}
        data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        if metric_columns.add_in_bulk(data, typed):
            assert name not in ("odd", "nan"), f"{name} is not plain"
        else:
            assert name in ("odd", "nan"), name
            typed["train"] = at_once
        assert at_once.length == one_by_one.length == typed["train"].length, name
        for key in ("step", "train/loss"):
            for found in (at_once, typed["train"]):
                assert np.array_equal(found.get(key), one_by_one.get(key), equal_nan=True), name


def test_an_axis_may_carry_names() -> None:
    assert charts.figure(View(), x="GB", y="").layout.yaxis.type is None
    assert charts.figure(View(), x="step", y="loss", log=True).layout.yaxis.type == "log"
