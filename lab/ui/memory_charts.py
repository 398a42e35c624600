"""The pictures of the Memory page: estimates in, Plotly figures out."""

from __future__ import annotations

import csv
import io
from typing import Any

import plotly.graph_objects as go

from lab import formatting, methods
from lab.forecast import rules_of_thumb
from lab.ui.charts import View, figure

PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "workspace")
TITLES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "loss": "logits and loss",
    "workspace": "workspace",
}
GREY = "#8a9aa0"


def bars(rows: list[dict[str, Any]], device: dict[str, Any], view: View) -> go.Figure:
    """One stacked bar a method: the parts at its peak, against the line of the device, with the
    rules of thumb that speak of such a run as markers."""
    names = [row["title"] for row in rows]
    chart = figure(view, x="GB at the peak", y="", height=210 + 46 * len(rows))
    colours = (*view.colours[:5], GREY)
    for i, part in enumerate(PARTS):
        chart.add_trace(
            go.Bar(
                y=names,
                x=[row["estimate"]["at_peak"].get(part, 0) / 1e9 for row in rows],
                name=TITLES[part],
                orientation="h",
                marker={"color": colours[i]},
                hovertemplate=f"{TITLES[part]} %{{x:.2f}} GB<extra></extra>",
            )
        )
    points = [
        (row["title"], claim, value, value / row["estimate"]["peak_bytes"] - 1)
        for row in rows
        for claim, value in row["estimate"]["rules"].items()
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
    ends = [row["estimate"]["peak_bytes"] for row in rows] + [value for _, _, value, _ in points]
    widest = max([*ends, device.get("bytes") or 0])
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


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars as rows of figures, in GB, with the predicted speed, energy and disk."""
    return [
        {
            "method": row["title"],
            "fits": _fits(row["estimate"]),
            "peak": row["estimate"]["peak_bytes"] / 1e9,
            "tokens/s": row["estimate"]["tokens_per_s"],
            "recomputes": _recomputes(row["estimate"].get("settings") or {}),
            **{TITLES[part]: row["estimate"]["at_peak"].get(part, 0) / 1e9 for part in PARTS},
            "phase": row["estimate"]["peak_phase"],
            "Wh a million tokens": row["estimate"]["wh_per_million_tokens"],
            "result on disk, GB": row["estimate"]["disk"]["artifact"] / 1e9,
            "by": formatting.estimated_by(row["estimate"]["source"]),
        }
        for row in rows
    ]


def _fits(estimate: dict[str, Any]) -> str:
    if estimate["fits"] is None and estimate.get("trace_error"):
        return "not known"
    return {True: "yes", False: "no", None: ""}[estimate["fits"]]


def _recomputes(settings: dict[str, Any]) -> str:
    if settings.get("activation_checkpointing") != "on":
        return "nothing"
    layers = settings.get("checkpointed_layers")
    return f"{layers} layers" if layers else "all layers"


def held_against(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every rule of thumb beside the prediction for the run that it speaks of."""
    shown: set[str] = set()
    errors = []
    for row in sorted(rows, key=lambda row: not methods.get(row["name"]).is_standard):
        for claim, value in row["estimate"]["rules"].items():
            if claim in shown:
                continue  # the usual method represents its kind
            shown.add(claim)
            peak = row["estimate"]["peak_bytes"]
            errors.append(
                {
                    "claim": claim,
                    "says": rules_of_thumb.says(claim),
                    "for": row["title"],
                    "rule, GB": value / 1e9,
                    "predicted, GB": peak / 1e9,
                    "error": value / peak - 1,
                }
            )
    return errors


def as_csv(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV with one header line."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
