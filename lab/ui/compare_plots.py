"""Trade-offs of Compare: two figures against each other, with the front that nothing beats."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from lab.compare.contestants import Contestant
from lab.compare.curves import HIGHER
from lab.compare.figures import BY_KEY
from lab.compare.trade_offs import PLANES, axes_with_values, pareto_front, points
from lab.ui import chart_style, colours, compare_price
from lab.ui.chart_style import End, View, figure, is_dark, literal, name_points
from lab.ui.compare_runs import plain_name

HEIGHT = 320
WIDTH = 430  # px of the plot about, at which names are kept within it
ROOM = 0.15  # of the range, around the points
SCALES = {"bytes": (1e9, "GB"), "s": (60.0, "min"), "FLOPs": (1e12, "TFLOPs")}


def planes(shown: list[Contestant]) -> None:
    """Two plots, whose axes stand in the address."""
    usd = compare_price.current(shown)
    axes = axes_with_values(shown, usd)
    if len(shown) < 2 or len(axes) < 2:
        st.caption("Two runs with two figures each are needed for a trade-off.")
        return
    grid = st.grid(2, min_column_width=380, gap="small", border=True)
    for position, plane in enumerate(PLANES, 1):
        with grid.cell():
            keys = [
                _axis(f"{letter}{position}", key, axes)
                for letter, key in zip("xy", plane, strict=True)
            ]
            places = points(shown, keys[0], keys[1], usd)
            if len(places) < 2:
                st.caption("Fewer than two of the runs shown have both figures.")
                continue
            chart_style.show(
                draw(shown, keys[0], keys[1], usd, is_dark()), f"compare.plane.{position}",
                f"{BY_KEY[keys[1]].title} against {BY_KEY[keys[0]].title}",
            )  # fmt: skip


def _axis(name: str, first: str, axes: list[str]) -> str:
    key = f"compare.{name}"
    if st.session_state.get(key) not in axes:
        requested = st.query_params.get(name, first)
        fallback = axes[0] if name[0] == "y" else axes[-1]
        st.session_state[key] = requested if requested in axes else fallback
    chosen = st.selectbox(
        "Horizontal" if name[0] == "x" else "Vertical", axes, key=key,
        format_func=lambda axis: BY_KEY[axis].title, persist_state="session",
    )  # fmt: skip
    st.query_params[name] = chosen
    return str(chosen)


def draw(shown: list[Contestant], x: str, y: str, usd: float, dark: bool) -> go.Figure:
    """A point with its name for each run; where both axes have a better direction, the front as a
    thin stepped line, and the good corner."""
    view = View(dark=dark)
    scale_x, title_x = _title(x)
    scale_y, title_y = _title(y)
    chart = figure(view, x=title_x, y=title_y, height=HEIGHT)
    by_id = {each.id: each for each in shown}
    places = points(shown, x, y, usd)
    front = pareto_front(places, x, y)
    chart.add_trace(
        go.Scatter(
            x=[point.x / scale_x for point in front], y=[point.y / scale_y for point in front],
            mode="lines", line={"width": 1, "color": view.quiet, "shape": "hv"},
            hoverinfo="skip", showlegend=False,
        )
    )  # fmt: skip
    ends: list[End] = []
    for point in places:
        contestant = by_id[point.id]
        colour = colours.hex_of(contestant.first.entry.colour, dark)
        name = plain_name(contestant)
        ends.append(End(name, point.y / scale_y, colour, point.x / scale_x))
        chart.add_trace(
            go.Scatter(
                x=[point.x / scale_x], y=[point.y / scale_y], mode="markers",
                marker={"size": 11, "color": colour}, name=literal(name), showlegend=False,
                hovertemplate="%{x:.4~g}, %{y:.4~g}",
            )
        )  # fmt: skip
    chart.layout.hovermode = "closest"
    chart.layout.xaxis.range = _range([point.x / scale_x for point in places])
    chart.layout.yaxis.range = _range([point.y / scale_y for point in places])
    name_points(chart, ends, WIDTH)
    right, top = BY_KEY[x].better == HIGHER, BY_KEY[y].better == HIGHER
    if front:
        chart.add_annotation(
            text="better", xref="paper", yref="paper", x=0.99 if right else 0.01,
            y=0.99 if top else 0.01, showarrow=False, font={"color": view.quiet, "size": 12},
        )  # fmt: skip
    return chart


def _title(key: str) -> tuple[float, str]:
    figure_of = BY_KEY[key]
    scale, unit = SCALES.get(figure_of.unit, (1.0, figure_of.unit))
    name = figure_of.title.partition(" (")[0]
    return scale, f"{name} ({unit})" if unit else name


def _range(values: list[float]) -> list[float]:
    low, high = float(np.min(values)), float(np.max(values))
    room = (high - low) * ROOM or abs(high) * ROOM or 1.0
    return [low - room, high + room]
