"""The pictures of the Memory page: estimates in, Plotly figures out."""

from __future__ import annotations

import csv
import io
from typing import Any

import plotly.graph_objects as go

from lab import methods
from lab.forecast import rules_of_thumb
from lab.forecasts import DiskForecast, MemoryForecast, Parts, Speed, recomputed_layers
from lab.ui.charts import View, figure
from lab.ui.method_estimates import MethodRow

TITLES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "loss": "logits and loss",
    "workspace": "workspace",
}
GREY = "#8a9aa0"


def bars(rows: list[MethodRow], device: dict[str, Any], view: View) -> go.Figure:
    """One stacked bar a method: the parts at its peak, against the line of the device, with the
    rules of thumb that speak of such a run as markers."""
    chart = figure(view, x="GB at the peak", y="", height=210 + 46 * len(rows))
    colours = (*view.colours[:5], GREY)
    for colour, (part, title) in zip(colours, TITLES.items(), strict=True):
        chart.add_trace(
            go.Bar(
                y=[row.title for row in rows],
                x=[_at_peak(row).get(part) / 1e9 for row in rows],
                name=title,
                orientation="h",
                marker={"color": colour},
                hovertemplate=f"{title} %{{x:.2f}} GB<extra></extra>",
            )
        )
    peaks = [row.forecast.memory.peak_bytes for row in rows]
    points = [
        (row.title, claim, value, value / peak - 1)
        for row, peak in zip(rows, peaks, strict=True)
        for claim, value in row.forecast.rules.items()
    ]
    if points:
        chart.add_trace(
            go.Scatter(
                y=[title for title, *_ in points],
                x=[value / 1e9 for _, _, value, _ in points],
                name="rules of thumb",
                mode="markers",
                marker={
                    "symbol": "diamond-open",
                    "size": 10,
                    "color": view.ink,
                    "line": {"width": 1.5, "color": view.ink},
                },
                customdata=[[claim, f"{error:+.0%}"] for _, claim, _, error in points],
                hovertemplate="%{customdata[0]}: %{x:.1f} GB (%{customdata[1]})<extra></extra>",
            )
        )
    if device.get("bytes"):
        size = device["bytes"] / 1e9
        chart.add_vline(
            x=size,
            line={"color": view.colours[3], "width": 2, "dash": "dash"},
            annotation={
                "text": f"{device['name']}: {size:.1f} GB",
                "font_color": view.colours[3],
                "yanchor": "bottom",
            },
            annotation_position="top",
        )
    widest = max([*peaks, *(value for _, _, value, _ in points), device.get("bytes") or 0])
    chart.update_layout(
        barmode="stack",
        hovermode="closest",
        bargap=0.35,
        legend={
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        margin={"l": 8, "r": 16, "t": 36, "b": 120},
    )
    chart.update_xaxes(range=[0, widest * 1.12 / 1e9])
    chart.update_yaxes(autorange="reversed", showgrid=False)
    return chart


def _at_peak(row: MethodRow) -> Parts:
    return row.forecast.memory.at_peak or Parts()


def table(rows: list[MethodRow]) -> list[dict[str, Any]]:
    """The bars as rows of figures, in GB, with the predicted speed, energy and disk."""
    table = []
    for row in rows:
        memory, disk = row.forecast.memory, row.forecast.disk or DiskForecast()
        speed = row.forecast.speed or Speed()
        table.append(
            {
                "method": row.title,
                "fits": _fits(memory),
                "peak": memory.peak_bytes / 1e9,
                "tokens/s": speed.tokens_per_s,
                "recomputes": recomputed_layers(row.forecast.settings),
                **{title: _at_peak(row).get(part) / 1e9 for part, title in TITLES.items()},
                "phase": memory.peak_phase,
                "Wh a million tokens": speed.wh_per_million_tokens,
                "result on disk, GB": disk.artifact / 1e9,
                "by": memory.how.in_words,
            }
        )
    return table


def _fits(memory: MemoryForecast) -> str:
    if memory.fits is None:
        return "not known" if memory.trace_error else ""
    return "yes" if memory.fits else "no"


def held_against(rows: list[MethodRow]) -> list[dict[str, Any]]:
    """Every rule of thumb beside the prediction for the run that it speaks of."""
    seen: set[str] = set()
    table = []
    for row in sorted(rows, key=lambda row: not methods.get(row.name).is_standard):
        peak = row.forecast.memory.peak_bytes
        for claim, value in row.forecast.rules.items():
            if claim in seen:
                continue  # the usual method of a kind stands for it
            seen.add(claim)
            table.append(
                {
                    "claim": claim,
                    "says": rules_of_thumb.says(claim),
                    "for": row.title,
                    "rule, GB": value / 1e9,
                    "predicted, GB": peak / 1e9,
                    "error": value / peak - 1,
                }
            )
    return table


def as_csv(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV with one header line."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
