"""Charts: series in, Plotly figures out. Pure, and in the colours of the theme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lab.atomic_files import number, read_object
from lab.runs.metric_columns import Columns
from lab.runs.metric_series import MetricSeries, downsample, ema

LIGHT = ("#0b7a75", "#e07a1f", "#6d4fc2", "#c2385f", "#2f6fd0", "#6b7f3a")
DARK = ("#2bb8ac", "#f0a04b", "#a78bfa", "#f0708f", "#6ea8fe", "#b5c96a")
TITLES = {"step": "step", "tokens": "tokens", "seconds": "seconds of training"}
CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}


@dataclass(frozen=True)
class View:
    """How a person wants to look: the axis, the smoothing, a logarithmic loss, the theme."""

    by: str = "step"
    smoothing: float = 0.0
    log: bool = False
    dark: bool = False

    @property
    def colours(self) -> tuple[str, ...]:
        return DARK if self.dark else LIGHT

    @property
    def ink(self) -> str:
        return "#e4eeee" if self.dark else "#16292b"

    @property
    def grid(self) -> str:
        return "#2c3d41" if self.dark else "#dfe8e8"


def figure(view: View, *, x: str, y: str, height: int = 260, log: bool = False) -> go.Figure:
    """An empty figure with the lab's axes. `uirevision` keeps a person's zoom over refreshes."""
    axis = {"gridcolor": view.grid, "zeroline": False, "automargin": True}
    # all at once: each update of a figure costs more than the whole of it
    return go.Figure(
        layout={
            "template": None,
            "height": height,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": view.ink, "size": 13, "family": "Source Sans, sans-serif"},
            "colorway": list(view.colours),
            "hovermode": "x unified",
            "hoverlabel": {
                "bgcolor": "#1a272b" if view.dark else "#ffffff",
                "font": {"color": view.ink},
            },
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "uirevision": f"{view.by}-{log}",
            "transition": {"duration": 0},
            "xaxis": axis | {"title": {"text": x, "font": {"size": 13}}},
            # without a type, Plotly sees from the data whether they are numbers or names
            "yaxis": axis
            | {"title": {"text": y, "font": {"size": 13}}}
            | ({"type": "log"} if log else {}),
        }
    )


def line(
    chart: go.Figure, x: np.ndarray, y: np.ndarray, name: str, colour: str, **style: Any
) -> None:
    """One trace of at most 2,000 points; NaN leaves a gap."""
    thin_x, thin_y = downsample(x, y)
    faint = style.pop("faint", False)
    dots = style.pop("dots", False) or len(thin_x) == 1
    kind = go.Scattergl if len(thin_x) > 1500 else go.Scatter
    chart.add_trace(
        kind(
            x=thin_x,
            y=thin_y,
            name=name,
            mode="lines+markers" if dots else "lines",
            line={"color": colour, "width": 1 if faint else 2, **style},
            opacity=0.35 if faint else 1.0,
            showlegend=not faint,
            hoverinfo="skip" if faint else None,
            connectgaps=False,
        )
    )


def loss(series: MetricSeries, view: View) -> go.Figure:
    """Training and evaluation loss, with the base's evaluation loss as a line."""
    chart = figure(view, x=TITLES[view.by], y="loss (nats/token)", height=340, log=view.log)
    train, held_out = series.train, series.evaluation
    x, y = train.get(view.by), train.get("train/loss")
    if view.smoothing > 0:
        line(chart, x, y, "train, raw", view.colours[0], faint=True)
    line(chart, x, ema(y, view.smoothing), "train", view.colours[0])
    base = held_out.base
    evaluated = held_out.get(view.by), held_out.get("eval/loss")
    if base is not None:
        evaluated = (
            np.concatenate([[0.0], evaluated[0]]),
            np.concatenate([[base["eval/loss"]], evaluated[1]]),
        )
    if len(evaluated[0]):
        line(chart, *evaluated, "evaluation", view.colours[1], dots=True)
    if base is not None:
        chart.add_hline(
            y=base["eval/loss"],
            line={"color": view.colours[1], "width": 1, "dash": "dot"},
            annotation={"text": "base", "font_color": view.colours[1]},
        )
    return chart


def single(columns: Columns, key: str, title: str, view: View, colour: int) -> go.Figure:
    """One quantity of the training steps."""
    chart = figure(view, x=TITLES[view.by], y=title)
    values = ema(columns.get(key), view.smoothing)
    line(chart, columns.get(view.by), values, title, view.colours[colour])
    chart.update_layout(showlegend=False)
    return chart


MEMORY = (
    ("cuda/allocated_bytes", "allocated"),
    ("cuda/reserved_bytes", "reserved"),
    ("nvml/used_bytes", "whole device"),
    ("cpu/rss_bytes", "process"),
)


def clock_of(device: Columns) -> np.ndarray:
    """Seconds since the first sample, in whole groups of five: a chart over the clock would
    otherwise be new, and drawn anew, every second, on the processor that trains."""
    clock = device.get("time")
    length = max(5, len(clock) // 5 * 5)
    return clock[:length] - clock[0] if len(clock) else clock


def memory(series: MetricSeries, view: View) -> go.Figure:
    """Memory over the clock, with the highest peak as a line. GB are 10^9 bytes."""
    chart = figure(view, x="seconds since the start", y="memory (GB)")
    device = series.device
    clock = clock_of(device)
    on_gpu = device.has("cuda/allocated_bytes")
    for i, (key, name) in enumerate(MEMORY):
        if device.has(key) and not (on_gpu and key.startswith("cpu")):
            line(chart, clock, device.get(key)[: len(clock)] / 1e9, name, view.colours[i % 6])
    predicted = number((read_object(series.run.estimate) or {}).get("peak_bytes"))
    if predicted is not None and predicted > 0:
        bound = "" if on_gpu else " (bound)"
        chart.add_hline(
            y=predicted / 1e9,
            line={"color": view.colours[5], "width": 1, "dash": "dot"},
            annotation={
                "text": f"predicted {predicted / 1e9:.2f} GB{bound}",
                "font_color": view.colours[5],
            },
            annotation_position="bottom left",
        )
    peak = series.train.last("memory/peak_bytes")
    if peak:
        chart.add_hline(
            y=peak / 1e9,
            line={"color": view.colours[3], "width": 1, "dash": "dash"},
            annotation={"text": f"peak {peak / 1e9:.2f} GB", "font_color": view.colours[3]},
        )
    return chart


def power(series: MetricSeries, view: View) -> go.Figure:
    chart = figure(view, x="seconds since the start", y="power (W)")
    device = series.device
    clock = clock_of(device)
    line(chart, clock, device.get("nvml/power_w")[: len(clock)], "power", view.colours[4])
    chart.update_layout(showlegend=False)
    return chart


def lengths(row_lengths: list[int], longest: int, view: View) -> go.Figure:
    """How long rows are in tokens, with the length at which they are cut."""
    chart = figure(view, x="tokens in a row, before anything is cut", y="rows", height=280)
    counts, edges = np.histogram(
        np.asarray(row_lengths), bins=min(60, max(5, len(set(row_lengths))))
    )
    middles = (edges[:-1] + edges[1:]) / 2
    chart.add_trace(go.Bar(x=middles, y=counts, width=np.diff(edges), marker_color=view.colours[0]))
    if max(row_lengths, default=0) > longest / 3:
        chart.add_vline(
            x=longest,
            line={"color": view.colours[3], "width": 1, "dash": "dash"},
            annotation={"text": "max length", "font_color": view.colours[3]},
        )
    reach = [edges[0], max(edges[-1], longest)] if chart.layout.shapes else [edges[0], edges[-1]]
    chart.update_xaxes(range=[float(edge) for edge in reach])
    chart.update_layout(showlegend=False, bargap=0.05, hovermode="x")
    return chart


def packed(rows: list[dict[str, Any]], longest: int, view: View) -> go.Figure:
    """Packed rows as bars; each part is one row of the file."""
    chart = figure(view, x="tokens", y="", height=60 + 34 * len(rows))
    names = [f"row {number}" for number in range(1, len(rows) + 1)]
    for i in range(max(len(row["lengths"]) for row in rows)):
        parts = [row["lengths"][i] if i < len(row["lengths"]) else 0 for row in rows]
        sources = [row["sources"][i] if i < len(row["sources"]) else 0 for row in rows]
        chart.add_trace(
            go.Bar(
                x=np.asarray(parts),
                y=names,
                orientation="h",
                customdata=np.asarray(sources),
                hovertemplate="row %{customdata} of the file: %{x} tokens<extra></extra>",
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
