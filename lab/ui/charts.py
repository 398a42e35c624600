"""Charts: series in, Plotly figures out. Pure, and in the style of `chart_style`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from lab.atomic_files import finite_number
from lab.checked_run import read_forecast
from lab.data.preview_types import BatchRow
from lab.runs import checkpoints
from lab.runs.metric_columns import Columns
from lab.runs.metric_series import MetricSeries, ema
from lab.ui import colours
from lab.ui.chart_style import End, View, figure, finish, level, line

__all__ = ["View", "figure", "finish", "line"]

TITLES = {"step": "step", "tokens": "tokens", "seconds": "training time (s)"}
MINUTES = "training time (min)"
FROM_MINUTES_S = 180.0  # from here on time is shown in minutes


def x_axis(by: str, *columns: Columns) -> tuple[float, str]:
    """(what values of the axis are divided by, its title)."""
    last = max((finite_number(part.last(by)) or 0.0 for part in columns), default=0.0)
    if by == "seconds" and last >= FROM_MINUTES_S:
        return 60.0, MINUTES
    return 1.0, TITLES[by]


def loss(series: MetricSeries, view: View, overlay: MetricSeries | None = None) -> go.Figure:
    """Training and evaluation loss, with the base's evaluation loss as a dotted line, and the
    evaluation loss of another run."""
    columns = [part for run in (series, overlay) if run for part in (run.train, run.evaluation)]
    scale, title = x_axis(view.by, *columns)
    chart = figure(view, x=title, y="loss (nats per token)", height=340, log=view.log)
    colour = colours.hex_of_run(series.run, view.dark)
    train = series.train
    x, y = train.get(view.by) / scale, train.get("train/loss")
    if view.smoothing > 0:
        line(chart, x, y, "training (raw)", colour, faint=True)
    smooth = ema(y, view.smoothing)
    line(chart, x, smooth, "training", colour, width=1.5)
    ends = _ends(x, smooth, "training", colour)
    at, values = _evaluations(series, view.by, scale)
    if len(at):
        line(chart, at, values, "evaluation", colour, dots=True)
        if series.evaluation.length:  # else its only point is the base, which has a name
            ends += _ends(at, values, "evaluation", colour)
    if overlay is not None:
        at, values = _evaluations(overlay, view.by, scale)
        other = colours.hex_of_run(overlay.run, view.dark)
        dash = "dash" if other == colour else "solid"
        if len(at):
            line(chart, at, values, "evaluation, overlaid", other, dots=True, dash=dash)
            ends += _ends(at, values, "overlaid", other)
    _checkpoints(chart, series, view, scale, colour)
    base = series.evaluation.base
    if base is not None and _is_shown(base["eval/loss"], view.log):
        level(chart, base["eval/loss"], view.quiet)
        ends.append(End(f"base {base['eval/loss']:.2f}", base["eval/loss"], view.quiet))
    return finish(chart, ends, log=view.log)


def _checkpoints(
    chart: go.Figure, series: MetricSeries, view: View, scale: float, colour: str
) -> None:
    """A square for each checkpoint, on the curve of the evaluation loss if it was measured there,
    else on that of the training loss. A click tells the step."""
    train, held_out = series.train, series.evaluation
    smooth = ema(train.get("train/loss"), view.smoothing)
    points = []
    for step in map(checkpoints.step_of, checkpoints.listing(series.run.checkpoints)):
        measured = np.flatnonzero(held_out.get("step") == step)
        trained = np.flatnonzero(train.get("step") == step)
        if len(measured):
            x, y = held_out.get(view.by)[measured[-1]], held_out.get("eval/loss")[measured[-1]]
        elif len(trained):
            x, y = train.get(view.by)[trained[-1]], smooth[trained[-1]]
        else:
            continue
        if _is_shown(float(y), view.log):
            points.append((float(x) / scale, float(y), step))
    if not points:
        return
    chart.add_trace(
        go.Scatter(
            x=[x for x, _, _ in points],
            y=[y for _, y, _ in points],
            customdata=[step for _, _, step in points],
            name="checkpoint",
            mode="markers",
            marker={"symbol": "square-open", "size": 11, "color": colour, "line": {"width": 2}},
            cliponaxis=False,
            selected={"marker": {"size": 14}},
            unselected={"marker": {"opacity": 1}},
            showlegend=False,
            hovertemplate="checkpoint of step %{customdata}: click to chat<extra></extra>",
        )
    )
    _pass_clicks_on({x: step for x, _, step in points}, chart)


def _pass_clicks_on(steps: dict[float, int], chart: go.Figure) -> None:
    """With one hover for all curves a click selects a point of the curve that is the highest there,
    not the square, and never one of a curve without markers: so every curve carries the steps
    (`steps`: x to step) too, each at its nearest point, since long curves are thinned."""
    for trace in chart.data:
        if trace.hoverinfo == "skip" or trace.name == "checkpoint":
            continue
        places = np.asarray(trace.x, float)
        distances = {at: np.abs(places - at) for at in steps}
        carried: list[int | None] = [None] * len(places)
        for at in sorted(steps, key=lambda at: -distances[at].min()):  # its own point comes last
            carried[int(distances[at].argmin())] = steps[at]
        trace.customdata = carried
        if trace.mode == "lines":
            trace.update(mode="lines+markers", marker={"opacity": 0})


def _evaluations(series: MetricSeries, by: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the evaluation loss was measured, and what it was; the base's at 0."""
    held_out = series.evaluation
    at, values = held_out.get(by) / scale, held_out.get("eval/loss")
    if held_out.base is not None:
        at = np.concatenate([[0.0], at])
        values = np.concatenate([[held_out.base["eval/loss"]], values])
    return at, values


def _is_shown(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _ends(x: np.ndarray, y: np.ndarray, name: str, colour: str) -> list[End]:
    """The name at the last value of a line; none for a line without values."""
    known = np.flatnonzero(np.isfinite(y))
    return [End(name, float(y[known[-1]]), colour, float(x[known[-1]]))] if len(known) else []


PLANS = ("train/learning_rate",)


def single(series: MetricSeries, key: str, title: str, view: View) -> go.Figure:
    """One quantity of the training steps; a plan such as the learning rate is never smoothed."""
    smoothing = 0.0 if key in PLANS else view.smoothing
    columns = series.train
    scale, x_title = x_axis(view.by, columns)
    chart = figure(view, x=x_title, y=title)
    colour = colours.hex_of_run(series.run, view.dark)
    values = ema(columns.get(key), smoothing)
    x = columns.get(view.by) / scale
    if smoothing > 0:
        line(chart, x, columns.get(key), "raw", colour, faint=True)
    line(chart, x, values, title, colour)
    return finish(chart, [])


def forgetting(series: MetricSeries, view: View) -> go.Figure:
    """The rise of the loss on the base's own answers at each evaluation, with its 95 % interval,
    and at the end on all answers; the base is 0."""
    probe = series.probe
    scale, x_title = x_axis(view.by, series.train)
    chart = figure(view, x=x_title, y="forgetting (nats per token)")
    colour = colours.hex_of_run(series.run, view.dark)
    x, rise = probe.get(view.by) / scale, probe.get("probe/rise")
    half, chats = probe.get("probe/rise_half"), probe.get("probe/chats")
    # the end is measured on more answers than the curve
    live = ~(chats > chats[0]) if len(chats) else np.zeros(0, bool)
    x_live, y_live = np.append(0.0, x[live]), np.append(0.0, rise[live])
    half_live = np.append(0.0, np.nan_to_num(half[live]))
    around_x = np.concatenate([x_live, x_live[::-1]])
    around_y = np.concatenate([y_live + half_live, (y_live - half_live)[::-1]])
    chart.add_trace(
        go.Scatter(
            x=around_x, y=around_y, fill="toself", mode="lines", line={"width": 0},
            fillcolor=colour, opacity=0.13, hoverinfo="skip", showlegend=False,
        )
    )  # fmt: skip
    line(chart, x_live, y_live, "forgetting", colour, dots=True)
    level(chart, 0.0, view.quiet)
    ends = [End("base", 0.0, view.quiet)]
    last = len(rise) - 1
    if last >= 0 and not live[last]:
        ends.append(End(f"all: {rise[last]:+.2f}", float(rise[last]), colour))
    elif len(y_live) > 1:
        ends.append(End(f"{y_live[-1]:+.2f}", float(y_live[-1]), colour))
    return finish(chart, ends)


def update_rank(series: MetricSeries, view: View) -> go.Figure:
    """Effective and stable rank of the updates at each evaluation, below the rank that they could
    have."""
    columns = series.evaluation
    scale, x_title = x_axis(view.by, series.train)
    chart = figure(view, x=x_title, y="rank (directions)")
    colour = colours.hex_of_run(series.run, view.dark)
    x, ends = columns.get(view.by) / scale, []
    for key, dash in (("effective", "solid"), ("stable", "dot")):
        values = columns.get(f"rank/{key}")
        line(chart, x, values, key, colour, dots=True, dash=dash)
        ends += _ends(x, values, key, colour)
    possible = finite_number(columns.last("rank/possible"))
    if possible is not None:
        level(chart, possible, view.quiet)
        ends.append(End(f"r {possible:.0f}", possible, view.quiet))
    finish(chart, ends)
    chart.layout.yaxis.range = [0, chart.layout.yaxis.range[1]]
    return chart


def condition(series: MetricSeries, view: View) -> go.Figure:
    """Condition number of the updates at each evaluation."""
    columns = series.evaluation
    scale, x_title = x_axis(view.by, series.train)
    chart = figure(view, x=x_title, y="condition number", log=True)
    colour = colours.hex_of_run(series.run, view.dark)
    x, values = columns.get(view.by) / scale, columns.get("rank/condition")
    line(chart, x, values, "condition number", colour, dots=True)
    return finish(chart, [], log=True)


MEMORY = (
    ("cuda/allocated_bytes", "allocated (PyTorch)", "solid"),
    ("cuda/reserved_bytes", "reserved (PyTorch)", "dash"),
    ("nvml/used_bytes", "whole GPU", "dot"),
    ("cpu/rss_bytes", "process", "solid"),
)


def clock_of(device: Columns) -> np.ndarray:
    """Seconds since the first sample, in whole groups of five: a chart over the clock would
    otherwise be new, and drawn anew, every second, on the processor that trains."""
    clock = device.get("time")
    length = max(5, len(clock) // 5 * 5)
    return clock[:length] - clock[0] if len(clock) else clock


def _clock_axis(device: Columns) -> tuple[np.ndarray, str]:
    clock = clock_of(device)
    if len(clock) and clock[-1] >= FROM_MINUTES_S:
        return clock / 60.0, "time since start (min)"
    return clock, "time since start (s)"


def memory(series: MetricSeries, view: View) -> go.Figure:
    """Memory over the clock, with the estimate and the highest peak as lines. GB are 10^9 bytes."""
    device = series.device
    clock, title = _clock_axis(device)
    chart = figure(view, x=title, y="memory (GB)")
    colour = colours.hex_of_run(series.run, view.dark)
    on_gpu = device.has("cuda/allocated_bytes")
    ends: list[End] = []
    for key, name, dash in MEMORY:
        if device.has(key) and not (on_gpu and key.startswith("cpu")):
            values = device.get(key)[: len(clock)] / 1e9
            line(chart, clock, values, name, colour, dash=dash, width=2)
            ends += _ends(clock, values, name, colour)
    estimate = read_forecast(series.run).memory.peak_bytes
    if estimate is not None and estimate > 0:
        level(chart, estimate / 1e9, view.quiet)
        ends.append(End(f"estimate {estimate / 1e9:.2f}", estimate / 1e9, view.quiet))
    peak = series.train.last("memory/peak_bytes")
    if peak:
        level(chart, peak / 1e9, view.ink, dash="dash")
        ends.append(End(f"peak {peak / 1e9:.2f}", peak / 1e9, view.ink))
    return finish(chart, ends)


def power(series: MetricSeries, view: View) -> go.Figure:
    device = series.device
    clock, title = _clock_axis(device)
    chart = figure(view, x=title, y="power (W)")
    colour = colours.hex_of_run(series.run, view.dark)
    line(chart, clock, device.get("nvml/power_w")[: len(clock)], "power", colour)
    return finish(chart, [])


def lengths(row_lengths: Sequence[int], longest: int, view: View) -> go.Figure:
    """How long rows are in tokens, with the length at which they are cut."""
    chart = figure(view, x="tokens per example (before truncation)", y="examples", height=280)
    counts, edges = np.histogram(
        np.asarray(row_lengths), bins=min(60, max(5, len(set(row_lengths))))
    )
    middles = (edges[:-1] + edges[1:]) / 2
    chart.add_trace(go.Bar(x=middles, y=counts, width=np.diff(edges), marker_color=view.colours[0]))
    if max(row_lengths, default=0) > longest / 3:
        chart.add_vline(
            x=longest,
            line={"color": view.colours[3], "width": 1, "dash": "dash"},
            annotation={"text": "sequence length", "font_color": view.colours[3]},
        )
    reach = [edges[0], max(edges[-1], longest)] if chart.layout.shapes else [edges[0], edges[-1]]
    chart.update_xaxes(range=[float(edge) for edge in reach])
    chart.update_layout(showlegend=False, bargap=0.05, hovermode="x")
    return chart


def packed(rows: Sequence[BatchRow], longest: int, view: View) -> go.Figure:
    """Packed rows as bars; each part is one row of the file."""
    chart = figure(view, x="tokens", y="", height=60 + 34 * len(rows))
    names = [f"sequence {position}" for position in range(1, len(rows) + 1)]
    for i in range(max(len(row.lengths) for row in rows)):
        parts = [row.lengths[i] if i < len(row.lengths) else 0 for row in rows]
        sources = [row.sources[i] if i < len(row.sources) else 0 for row in rows]
        chart.add_trace(
            go.Bar(
                x=np.asarray(parts),
                y=names,
                orientation="h",
                customdata=np.asarray(sources),
                hovertemplate="row %{customdata} of the file: %{x} tokens<extra></extra>",
                text=[
                    str(source) if part else "" for part, source in zip(parts, sources, strict=True)
                ],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                marker={
                    "color": view.colours[i % len(view.colours)],
                    "line": {"width": 1, "color": view.grid},
                },
            )
        )
    chart.update_layout(barmode="stack", showlegend=False, hovermode="closest")
    chart.update_xaxes(range=[0, longest])
    chart.update_yaxes(type="category", autorange="reversed")
    return chart
