"""Charts hold the figures of the run, in the units that their axes say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.atomic_files import write_json
from lab.data.preview_types import BatchRow
from lab.paths import RunDir
from lab.runs.metric_series import MetricSeries
from lab.ui import chart_style, charts, monitor_charts
from lab.ui.charts import View


def series(folder: Path, *records: dict[str, Any], estimate: Any = None) -> MetricSeries:
    run = RunDir(folder)
    with run.metrics.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    if estimate is not None:
        write_json(run.estimate, estimate)
    return MetricSeries(run).refresh()


def steps(count: int = 4, **more: Any) -> list[dict[str, Any]]:
    return [
        {"kind": "train", "attempt": 1, "step": step, "tokens": 100 * step, "seconds": 2.0 * step,
         "train/loss": 5.0 - step, **more}
        for step in range(1, count + 1)
    ]  # fmt: skip


def device(count: int = 12, **values: float) -> list[dict[str, Any]]:
    return [
        {
            "kind": "device",
            "time": 1e9 + number,
            **{key.replace("__", "/"): value for key, value in values.items()},
        }
        for number in range(count)
    ]


def lines_of(figure: Any) -> dict[str, float]:
    """{note: height} of the lines over the whole width."""
    notes = [note.text for note in figure.layout.annotations if note.xref == "paper"]
    heights = [shape.y0 for shape in figure.layout.shapes]
    return dict(zip(notes, heights, strict=True))


def traces_of(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_memory_is_in_gb_of_powers_of_ten_on_a_gpu(tmp_path: Path) -> None:
    recorded = series(
        tmp_path,
        *steps(**{"memory/peak_bytes": 24 * 10**9}),
        *device(
            cuda__allocated_bytes=20e9,
            cuda__reserved_bytes=26e9,
            nvml__used_bytes=27e9,
            cpu__rss_bytes=3e9,
        ),
        estimate={"peak_bytes": 25 * 10**9},
    )  # fmt: skip
    figure = charts.memory(recorded, View())
    assert lines_of(figure) == {"estimate 25.00": 25.0, "peak 24.00": 24.0}
    heights = {name: set(trace.y) for name, trace in traces_of(figure).items()}
    assert heights == {
        "allocated (PyTorch)": {20.0},
        "reserved (PyTorch)": {26.0},
        "whole GPU": {27.0},
    }, "The process's own memory is another one's."
    assert "(GB)" in figure.layout.yaxis.title.text


def test_memory_of_a_processor_has_a_bound(tmp_path: Path) -> None:
    recorded = series(tmp_path, *device(cpu__rss_bytes=3e9), estimate={"peak_bytes": 4 * 10**9})
    figure = charts.memory(recorded, View())
    assert lines_of(figure) == {"estimate 4.00": 4.0}
    assert {name: set(trace.y) for name, trace in traces_of(figure).items()} == {"process": {3.0}}
    assert not charts.memory(series(tmp_path / ".."), View()).layout.shapes


def test_the_clock_starts_at_nought_and_goes_in_fives(tmp_path: Path) -> None:
    clock = charts.clock_of(series(tmp_path, *device(13)).device)
    assert clock.tolist() == [float(second) for second in range(10)]
    figure = charts.power(series(tmp_path, *device(0)), View())
    assert len(figure.data) == 1


def test_power_is_in_watts(tmp_path: Path) -> None:
    figure = charts.power(series(tmp_path, *device(10, nvml__power_w=350.0)), View())
    (trace,) = figure.data
    assert set(trace.y) == {350.0} and list(trace.x) == list(range(10))


@pytest.mark.parametrize(
    ("by", "at"),
    [("step", [1, 2, 3, 4]), ("tokens", [100, 200, 300, 400]), ("seconds", [2, 4, 6, 8])],
)
def test_the_loss_stands_over_the_chosen_axis_beside_the_base(
    tmp_path: Path, by: str, at: list[float]
) -> None:
    evals = [
        {"kind": "eval", "of": "base", "step": 0, "eval/loss": 6.0},
        {"kind": "eval", "attempt": 1, "step": 4, "tokens": 400, "seconds": 8.0, "eval/loss": 2.0},
    ]
    figure = charts.loss(series(tmp_path, *steps(), *evals), View(by=by))
    traces = traces_of(figure)
    assert list(traces["training"].x) == at and list(traces["training"].y) == [4.0, 3.0, 2.0, 1.0]
    assert list(traces["evaluation"].x) == [0.0, at[-1]]
    assert list(traces["evaluation"].y) == [6.0, 2.0]
    assert lines_of(figure) == {"base 6.00": 6.0}, "The line is the base model's."
    assert figure.layout.xaxis.title.text == charts.TITLES[by]
    assert "training (raw)" not in traces


def test_smoothing_draws_the_raw_line_faintly_behind(tmp_path: Path) -> None:
    traces = traces_of(charts.loss(series(tmp_path, *steps()), View(smoothing=0.5)))
    assert list(traces["training (raw)"].y) == [4.0, 3.0, 2.0, 1.0]
    # the mean of what came so far, each earlier one half as heavy
    second, third = (4 / 2 + 3) / 1.5, (4 / 4 + 3 / 2 + 2) / 1.75
    assert list(traces["training"].y)[:3] == pytest.approx([4.0, second, third])
    assert traces["training (raw)"].opacity < traces["training"].opacity


def test_what_is_missing_leaves_a_gap(tmp_path: Path) -> None:
    recorded = series(tmp_path, *steps(2), {"kind": "train", "step": 3, "attempt": 1})
    (trace,) = charts.single(recorded, "train/loss", "loss", View()).data
    assert trace.connectgaps is False and np.isnan(trace.y[2])


BASE = {"kind": "eval", "of": "base", "step": 0, "eval/loss": 6.0}


def test_a_logarithmic_axis_shows_the_data_and_nothing_beyond(tmp_path: Path) -> None:
    figure = charts.loss(series(tmp_path, *steps(), BASE), View(log=True))
    low, high = figure.layout.yaxis.range
    assert 0.5 < 10**low < 1.0 and 6.0 < 10**high < 8.0, "from the loss of 1 to the base's 6"
    at = {note.text: 10**note.y for note in figure.layout.annotations}
    assert at["base 6.00"] == pytest.approx(6.0), "A name stands in the units of its axis."
    assert figure.layout.shapes[0].y0 == 6.0
    assert figure.layout.yaxis.dtick == "D2"
    narrow = charts.loss(series(tmp_path, *steps(), BASE | {"eval/loss": 2.0}), View(log=True))
    assert narrow.layout.yaxis.dtick == "D1", "a line at each digit where there are few"


def test_the_axes_start_at_nought_and_write_small_numbers_in_full(tmp_path: Path) -> None:
    recorded = series(tmp_path, *steps(**{"train/learning_rate": 5e-5}))
    figure = charts.single(recorded, "train/learning_rate", "learning rate", View(smoothing=0.6))
    assert list(figure.layout.xaxis.range) == [0, 4]
    assert figure.layout.yaxis.exponentformat == "e", "5e-5 and not 50µ"
    x = figure.layout.xaxis
    assert (x.exponentformat, x.minexponent, x.separatethousands) == ("SI", 6, True), (
        "20,000 tokens and not 2e4; 20T FLOPs"
    )
    assert len(figure.data) == 1, "A plan has no raw line behind a smoothed one."


def test_minutes_stand_for_long_runs(tmp_path: Path) -> None:
    long = [row | {"seconds": 600.0 * row["step"]} for row in steps()]
    figure = charts.loss(series(tmp_path, *long), View(by="seconds"))
    assert list(traces_of(figure)["training"].x) == [10.0, 20.0, 30.0, 40.0]
    assert figure.layout.xaxis.title.text == "training time (min)"


def test_the_names_of_lines_never_strike_each_other(tmp_path: Path) -> None:
    rising = [row | {"cpu/rss_bytes": 1e9 * min(4, i)} for i, row in enumerate(device(15))]
    recorded = series(
        tmp_path, *steps(**{"memory/peak_bytes": 4.01e9}), *rising, estimate={"peak_bytes": 4.02e9}
    )
    figure = charts.memory(recorded, View())
    low, high = figure.layout.yaxis.range
    pixels = sorted(
        (note.y - low) / (high - low) * (figure.layout.height - 50) + note.yshift
        for note in figure.layout.annotations
    )
    assert len(pixels) == 3
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(pixels))
    assert pixels[0] >= 0 and pixels[-1] <= figure.layout.height - 50 + 0.1


def test_a_name_among_lines_has_the_page_behind_it(tmp_path: Path) -> None:
    evaluation = {"kind": "eval", "attempt": 1, "step": 2, "eval/loss": 2.0}
    recorded = series(tmp_path, *steps(), BASE, evaluation)
    for view, page in ((View(), "#ffffff"), (View(dark=True), "#0f171a")):
        behind = {
            note.text.split()[0]: note.bgcolor
            for note in charts.loss(recorded, view).layout.annotations
        }
        assert behind == {"training": None, "evaluation": page, "base": None}


def test_names_of_points_neither_strike_each_other_nor_leave_the_plot() -> None:
    chart = chart_style.figure(View(dark=True), x="memory", y="loss", height=320)
    chart.layout.xaxis.range, chart.layout.yaxis.range = [0.0, 1.0], [2.0, 3.0]
    points = (
        ("near", 0.5, 2.4),
        ("nearer", 0.51, 2.42),
        ("a name of many words and <b>tags</b>", 1.0, 2.9),
    )
    ends = [chart_style.End(name, y, "#123456", x) for name, x, y in points]
    chart_style.name_points(chart, ends, 400)
    near, nearer, last = chart.layout.annotations
    assert (near.text, nearer.text) == ("near", "nearer")
    heights = [(note.y - 2.0) * 270 + note.yshift for note in (near, nearer)]
    assert heights[1] - heights[0] >= chart_style.APART, "one above the other"
    assert last.text.startswith("a name of many words") and last.text.endswith("…")
    half = len(last.text) * chart_style.CHARACTER_PX / 2
    assert 400 + last.xshift + half <= 400.1, "it ends where the plot ends"
    assert {note.bgcolor for note in chart.layout.annotations} == {None}, "it would hide a point"


def test_a_curve_of_the_base_alone_has_the_base_for_a_name(tmp_path: Path) -> None:
    figure = charts.loss(series(tmp_path, *steps(), BASE), View())
    names = [note.text.split()[0] for note in figure.layout.annotations]
    assert names == ["training", "base"], "The line of the base would strike another one through."


def test_a_name_is_drawn_as_it_is_and_never_as_markup() -> None:
    name = "<a href='http://evil.example'>best</a> & <b>x\u202e</b>\n2"
    shown = "&lt;a href='http://evil.example'&gt;best&lt;/a&gt; &amp; &lt;b&gt;x⟨202e⟩&lt;/b&gt; 2"
    chart = chart_style.figure(View(), x="step", y="loss")
    chart_style.line(chart, np.array([0.0, 1.0]), np.array([2.0, 1.0]), name, "#123456")
    chart_style.finish(chart, [chart_style.End(name, 1.0, "#123456")])
    assert (chart.data[0].name, chart.layout.annotations[0].text) == (shown, shown)


def test_a_run_has_one_colour_and_the_overlaid_run_its_own(tmp_path: Path) -> None:
    from lab.ui import colours

    for name, colour in (("a", "violet"), ("b", "orange"), ("c", "violet")):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "labels.json", {"colour": colour})
    evaluation = {"kind": "eval", "attempt": 1, "step": 4, "eval/loss": 2.0}
    first, second, third = (
        series(tmp_path / name, *steps(), BASE, evaluation) for name in ("a", "b", "c")
    )
    for dark in (False, True):
        traces = traces_of(charts.loss(first, View(dark=dark), second))
        assert traces["training"].line.color == colours.hex_of("violet", dark)
        assert traces["evaluation"].line.color == colours.hex_of("violet", dark)
        overlaid = traces["evaluation, overlaid"].line
        assert (overlaid.color, overlaid.dash) == (colours.hex_of("orange", dark), "solid")
    assert traces_of(charts.loss(first, View(), third))["evaluation, overlaid"].line.dash == "dash"


def test_both_runs_stand_over_the_unit_of_the_longer_one(tmp_path: Path) -> None:
    for name in ("short", "long"):
        (tmp_path / name).mkdir()
    evaluation = {"kind": "eval", "attempt": 1, "step": 4, "seconds": 600.0, "eval/loss": 2.0}
    other = series(tmp_path / "long", *steps(), evaluation)
    chart = charts.loss(series(tmp_path / "short", *steps()), View(by="seconds"), other)
    traces = traces_of(chart)
    assert chart.layout.xaxis.title.text == charts.MINUTES
    assert list(traces["training"].x) == pytest.approx([2 / 60, 4 / 60, 6 / 60, 8 / 60])
    assert list(traces["evaluation, overlaid"].x) == [10.0], "the axis says minutes of both"


def test_one_quantity_stands_over_minutes_where_the_run_is_long(tmp_path: Path) -> None:
    records = [record | {"seconds": 1800.0 * record["step"]} for record in steps()]
    chart = charts.single(series(tmp_path, *records), "train/loss", "loss", View(by="seconds"))
    assert list(chart.data[0].x) == [30.0, 60.0, 90.0, 120.0]
    assert chart.layout.xaxis.title.text == charts.MINUTES


def test_one_quantity_is_smoothed_as_the_losses_are(tmp_path: Path) -> None:
    recorded = series(tmp_path, *steps())
    (plain,) = charts.single(recorded, "train/loss", "loss", View()).data
    raw, smooth = charts.single(recorded, "train/loss", "loss", View(smoothing=0.5)).data
    assert list(raw.y) == list(plain.y) and raw.opacity < smooth.opacity
    assert list(plain.y) == [4.0, 3.0, 2.0, 1.0]
    assert list(smooth.y)[:2] == pytest.approx([4.0, (4 / 2 + 3) / 1.5])


def test_no_chart_of_a_long_run_takes_a_webgl_context(tmp_path: Path) -> None:
    """A browser has sixteen of them, and needs half a second for each without a GPU."""
    long = series(tmp_path, *steps(3_000))
    figures = monitor_charts.charts_of(long, View("step", 0.6, False, False))
    kinds = {trace.type for _, figure in figures.values() for trace in figure.data}
    longest = max(len(trace.x) for trace in figures["loss"][1].data)
    assert longest > 1_500 and kinds == {"scatter"}


def test_single_points_are_seen(tmp_path: Path) -> None:
    evals = [{"kind": "eval", "attempt": 1, "step": 1, "eval/loss": 2.0}]
    traces = traces_of(charts.loss(series(tmp_path, *steps(1), *evals), View()))
    assert {trace.mode for trace in traces.values()} == {"lines+markers"}, "a line needs two"
    (tmp_path / "more").mkdir()
    longer = traces_of(charts.loss(series(tmp_path / "more", *steps(3), *evals), View()))
    assert (longer["training"].mode, longer["evaluation"].mode) == ("lines", "lines+markers")


def test_only_the_loss_is_ever_logarithmic(tmp_path: Path) -> None:
    recorded = series(tmp_path, *steps())
    assert charts.loss(recorded, View(log=True)).layout.yaxis.type == "log"
    assert charts.loss(recorded, View()).layout.yaxis.type is None
    rate = charts.single(recorded, "train/loss", "loss", View(log=True))
    assert rate.layout.yaxis.type is None


def test_lengths_are_counted_and_the_cut_stands_where_rows_are_cut() -> None:
    figure = charts.lengths([10, 10, 20, 500], 512, View())
    (bars,) = figure.data
    assert sum(bars.y) == 4 and bars.y[0] == 3
    assert [shape.x0 for shape in figure.layout.shapes] == [512]
    assert figure.layout.xaxis.range[1] >= 512
    assert not charts.lengths([10, 12], 512, View()).layout.shapes, "Far from any row."


def test_packed_rows_name_the_rows_of_the_file() -> None:
    rows = [BatchRow(lengths=(30, 20), sources=(7, 9)), BatchRow(lengths=(50,), sources=(8,))]
    figure = charts.packed(rows, 64, View())
    assert [list(trace.x) for trace in figure.data] == [[30, 50], [20, 0]]
    assert [list(trace.customdata) for trace in figure.data] == [[7, 8], [9, 0]]
    assert list(figure.layout.xaxis.range) == [0, 64]


def test_forgetting_is_drawn_with_its_interval_and_what_all_answers_said(tmp_path: Path) -> None:
    def probe(step: int, rise: float, chats: int) -> dict[str, Any]:
        return {"kind": "probe", "attempt": 1, "step": step, "tokens": 9 * step, "seconds": 2.0,
                "probe/rise": rise, "probe/rise_half": 0.05, "probe/chats": chats}  # fmt: skip

    recorded = series(tmp_path, *steps(), probe(2, 0.1, 20), probe(4, 0.3, 20), probe(4, 0.25, 100))
    figure = charts.forgetting(recorded, View())
    line = traces_of(figure)["forgetting"]
    assert list(line.x) == [0, 2, 4] and list(line.y) == [0, 0.1, 0.3], (
        "The same answers each time."
    )
    band = figure.data[0]
    assert list(band.y) == pytest.approx([0, 0.15, 0.35, 0.25, 0.05, 0])
    notes = {note.text: note.y for note in figure.layout.annotations}
    assert notes == {"base": 0.0, "all: +0.25": 0.25}


def test_the_rank_of_updates_stands_below_what_it_could_be(tmp_path: Path) -> None:
    records = [
        {"kind": "eval", "attempt": 1, "step": step, "tokens": step, "seconds": 1.0 * step,
         "eval/loss": 2.0, "rank/possible": 16.0, "rank/effective": 9.0 - step,
         "rank/stable": 3.0, "rank/condition": 10.0**step}
        for step in (1, 2, 3)
    ]  # fmt: skip
    recorded = series(tmp_path, *steps(3), *records)
    chart = charts.update_rank(recorded, View())
    traces = traces_of(chart)
    assert traces["effective"].y.tolist() == [8.0, 7.0, 6.0]
    assert traces["stable"].y.tolist() == [3.0] * 3
    assert lines_of(chart) == {"r 16": 16.0}
    low, high = chart.layout.yaxis.range
    assert low == 0 and high > 16, "The rank is seen against nothing and against what it could be."
    chart = charts.condition(recorded, View())
    assert chart.data[0].y.tolist() == [10.0, 100.0, 1000.0] and chart.layout.yaxis.type == "log"
    drawn = monitor_charts.charts_of(recorded, View())
    assert {"rank", "condition"} <= drawn.keys()
    without = series(another_folder(tmp_path), *steps(3))
    assert "rank" not in monitor_charts.charts_of(without, View()), "Full fine-tuning has none."
    for key in ("rank", "condition"):
        assert monitor_charts.MEANINGS[key].count(".") == 2, "Two sentences explain it."


def another_folder(folder: Path) -> Path:
    other = folder / "full"
    other.mkdir()
    return other
