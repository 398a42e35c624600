"""The one style of all charts: figures without a legend, names at the ends of their lines."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from lab.runs.metric_series import downsample
from lab.ui import colours
from lab.visible import on_one_line

CONFIG = {
    "displaylogo": False,
    "modeBarButtons": [["toImage"]],
}
AXIS_SIZE, LABEL_SIZE = 12, 12
APART = 14  # pixels between the names of two lines
MARGIN = 0.05  # of the range, above and below what is shown


@dataclass(frozen=True)
class View:
    """How a person wants to look: the axis, the smoothing, a logarithmic loss, the theme."""

    by: str = "step"
    smoothing: float = 0.0
    log: bool = False
    dark: bool = False

    @property
    def colours(self) -> tuple[str, ...]:
        return tuple((colours.DARK if self.dark else colours.LIGHT).values())

    @property
    def ink(self) -> str:
        return "#e6eeee" if self.dark else "#14272a"

    @property
    def quiet(self) -> str:
        """Axes, notes, and the base model."""
        return colours.BASE[self.dark]

    @property
    def page(self) -> str:
        """What charts are drawn on."""
        return "#0f171a" if self.dark else "#ffffff"

    @property
    def grid(self) -> str:
        return "#2b3b40" if self.dark else "#d6e0e0"


def is_dark() -> bool:
    return bool(st.context.theme.get("type") == "dark")


def show(chart: go.Figure, key: str, alt: str, *, selects: bool = False) -> Any:
    """Draw `chart` on the page; the points that were clicked where it `selects`. `alt` is what a
    screen reader says of it and may hold the text of a person."""
    return st.plotly_chart(
        chart, key=key, theme=None, alt=on_one_line(alt),
        config=CONFIG | {"toImageButtonOptions": {"filename": key.replace(".", "-"), "scale": 2}},
        on_select="rerun" if selects else "ignore", selection_mode="points",
    )  # fmt: skip


def figure(view: View, *, x: str, y: str, height: int = 200, log: bool = False) -> go.Figure:
    """An empty figure with the lab's axes. `uirevision` keeps a person's zoom over refreshes."""
    axis = {
        "gridcolor": view.grid,
        "zeroline": False,
        "automargin": True,
        "exponentformat": "e",  # 5e-5; the default would be 50µ
        "tickfont": {"size": AXIS_SIZE, "color": view.quiet},
    }
    title = {"font": {"size": AXIS_SIZE, "color": view.quiet}, "standoff": 6}
    # all at once: each update of a figure costs more than the whole of it
    return go.Figure(
        layout={
            "template": None,
            "height": height,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": view.ink, "size": AXIS_SIZE, "family": "Source Sans, sans-serif"},
            "colorway": list(view.colours),
            "hovermode": "x unified",
            "hoverlabel": {
                "bgcolor": "#1a262a" if view.dark else "#ffffff",
                "font": {"color": view.ink},
            },
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": view.quiet, "activecolor": view.ink},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "uirevision": f"{view.by}-{log}",
            "transition": {"duration": 0},
            "meta": {"page": view.page},
            "xaxis": axis
            | {"title": {"text": x, **title}, "showgrid": False}
            | {
                "exponentformat": "SI",
                "minexponent": 6,
                "separatethousands": True,
            },  # 5,000; 20T
            # without a type, Plotly sees from the data whether they are numbers or names
            "yaxis": axis
            | {"title": {"text": y, **title}, "separatethousands": True}
            | ({"type": "log", "dtick": "D2"} if log else {}),
        }
    )


def literal(text: str) -> str:
    """A name of a person as Plotly shows it as it is: it takes `<b>` and `<a href>` for markup."""
    return html.escape(on_one_line(text), quote=False)


def line(
    chart: go.Figure, x: np.ndarray, y: np.ndarray, name: str, colour: str, **style: Any
) -> None:
    """One trace of at most 2,000 points; NaN leaves a gap. `faint`: a raw line behind a smoothed
    one; `dots`: with a point at each value. Drawn as SVG: WebGL takes half a second a chart where
    there is no GPU, and a browser has few contexts for it."""
    thin_x, thin_y = downsample(x, y)
    faint = style.pop("faint", False)
    dots = style.pop("dots", False) or len(thin_x) == 1
    width = style.pop("width", 1 if faint else 2.5)
    chart.add_trace(
        go.Scatter(
            x=thin_x,
            y=thin_y,
            name=literal(name),
            mode="lines+markers" if dots else "lines",
            line={"color": colour, "width": width, **style},
            opacity=0.25 if faint else 1.0,
            showlegend=False,
            hoverinfo="skip" if faint else None,
            hovertemplate=None if faint else "%{y:.4~g}",
            connectgaps=False,
            cliponaxis=False,
        )
    )


@dataclass(frozen=True)
class End:
    """A name at the right end of a line."""

    name: str
    y: float
    colour: str
    x: float | None = None  # None: at the right edge


def finish(chart: go.Figure, ends: list[End], *, log: bool = False) -> go.Figure:
    """Ranges from the data alone, x from 0, and the names of the lines at their ends, moved apart
    where two would strike each other. Lines over the whole width come as `ends` without an x, and
    count for the range of y."""
    values = [np.asarray(trace.y, dtype=float) for trace in chart.data] + [
        np.asarray([end.y for end in ends], dtype=float)
    ]
    shown = np.concatenate(values) if values else np.zeros(0)
    shown = shown[np.isfinite(shown) & ((shown > 0) if log else True)]
    widest = max((float(np.nanmax(t.x)) for t in chart.data if len(t.x)), default=1.0)
    chart.layout.xaxis.range = [0, widest or 1.0]
    if not len(shown):
        return chart
    low, high = float(shown.min()), float(shown.max())
    if log:
        low, high = math.log10(low), math.log10(high)
    room = (high - low) * MARGIN or abs(high) * MARGIN or 1.0
    bottom, top = low - room, high + room
    chart.layout.yaxis.range = [bottom, top]
    if log and top - bottom < 0.7:  # 1, 2 and 5 alone would leave one line, or none
        chart.layout.yaxis.dtick = "D1"
    height = max(1.0, float(chart.layout.height) - 50)  # of the plot, without the axis below
    ends = [end for end in ends if math.isfinite(end.y) and (end.y > 0 or not log)]
    pixels = [(_in_units(end.y, log) - bottom) / (top - bottom) * height for end in ends]
    shifts = _apart(pixels, APART, height)
    chart.layout.annotations = [
        {
            # in the axis's own units: the exponent where it is logarithmic
            "y": _in_units(end.y, log),
            "yref": "y",
            "yshift": shift,
            "x": 1 if end.x is None else end.x,
            "xref": "paper" if end.x is None else "x",
            "xanchor": "left",
            "xshift": 8,
            "text": literal(end.name),
            "showarrow": False,
            "align": "left",
            "font": {"size": LABEL_SIZE, "color": end.colour},
            # other lines pass behind a name that stands among them
            "bgcolor": chart.layout.meta["page"] if _is_among(end, widest) else None,
            "borderpad": 1,
        }
        for end, shift in zip(ends, shifts, strict=True)
    ]
    longest = max((len(end.name) for end in ends), default=0)
    chart.layout.margin.r = 14 + round(6.6 * longest) if ends else 12
    return chart


def _is_among(end: End, widest: float) -> bool:
    """Whether the name stands on the plot: a line that ends at its right edge has it beside."""
    return end.x is not None and end.x < widest


MAX_NAME_CHARS = 24  # of a point: what is longer is told by the pointer
CHARACTER_PX = 6.6  # about the width of a letter


def name_points(chart: go.Figure, ends: list[End], width: float) -> go.Figure:
    """Names above points, moved up where two would strike each other, and into a plot of about
    `width` pixels where they would reach beyond it. Ranges have to be known."""
    (left, right), (bottom, top) = chart.layout.xaxis.range, chart.layout.yaxis.range
    height = max(1.0, float(chart.layout.height) - 50)
    placed: list[tuple[float, float, float]] = []  # (from, to, height of the middle) in pixels
    for end in sorted(ends, key=lambda end: (end.y, end.x or 0.0)):
        name = end.name if len(end.name) <= MAX_NAME_CHARS else end.name[: MAX_NAME_CHARS - 1] + "…"
        half = len(name) * CHARACTER_PX / 2
        x = ((end.x or 0.0) - left) / (right - left) * width
        middle = min(max(x, half), max(half, width - half))
        point = (end.y - bottom) / (top - bottom) * height
        y = point + APART
        for start, stop, other in sorted(placed, key=lambda box: box[2]):
            if middle - half < stop and start < middle + half and abs(y - other) < APART:
                y = other + APART
        placed.append((middle - half, middle + half, y))
        chart.add_annotation(
            x=end.x, y=end.y, xshift=middle - x, yshift=y - point, text=literal(name),
            showarrow=False, font={"size": LABEL_SIZE, "color": end.colour},
        )  # fmt: skip
    return chart


def _in_units(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def _apart(positions: list[float], distance: float, height: float) -> list[float]:
    """By how much to move each position, so that no two are closer than `distance` and all stay
    between 0 and `height` while there is room."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [positions[i] for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + distance)
    over = placed[-1] - height if placed else 0.0
    if over > 0:
        placed[-1] -= over
        for i in range(len(placed) - 2, -1, -1):
            placed[i] = min(placed[i], placed[i + 1] - distance)
    shifts = [0.0] * len(positions)
    for i, position in zip(order, placed, strict=True):
        shifts[i] = position - positions[i]
    return shifts


def level(chart: go.Figure, y: float, colour: str, dash: str = "dot") -> None:
    """A thin line over the whole width."""
    chart.add_shape(
        type="line", xref="paper", x0=0, x1=1, yref="y", y0=y, y1=y,
        line={"color": colour, "width": 1.5, "dash": dash},
    )  # fmt: skip
