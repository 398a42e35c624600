"""The pictures of the Memory page: estimates in, Plotly figures and tables out."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lab import formatting, methods
from lab.forecast import rules_of_thumb
from lab.forecasts import DiskForecast, MemoryForecast, Parts, Speed, checkpointed_layers
from lab.ui.charts import View, figure
from lab.ui.method_estimates import MethodRow

TITLES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "loss": "logits and loss",
    "workspace": "workspace",
}
GREY = "#8a9aa0"
ROOM = 1.3  # times the longest bar: the figure at its end needs some
RULES_ROOM = 1.6  # times the longest bar at most; what lies beyond is marked at the edge


@dataclass(frozen=True)
class Bars:
    """What one setting gives: the methods on one device, whose memory may be unknown."""

    rows: list[MethodRow]
    device_name: str
    device_bytes: int | None = None
    letter: str = ""  # A or B beside each other

    def peak(self, name: str) -> int | None:
        """Bytes of a method, None without a figure."""
        row = next((row for row in self.rows if row.name == name), None)
        return row.forecast.memory.peak_bytes or None if row else None


def order(settings: list[Bars]) -> list[str]:
    """The names of the methods, the smallest peak of the first setting first."""
    peaks: dict[str, int] = {}
    for bars in settings:
        for row in bars.rows:
            peaks.setdefault(row.name, row.forecast.memory.peak_bytes)
    return sorted(peaks, key=lambda name: peaks[name])


def chart(settings: list[Bars], view: View, *, rules: bool = False) -> go.Figure:
    """A stacked bar for each method and setting: the parts at its peak, the figure at its end in
    the colour of whether it fits, and the device's memory as a line where the bars come near it.
    `rules`: with the rules of thumb as diamonds."""
    names = order(settings)
    is_pair = len(settings) > 1
    each = 44 if is_pair else 30
    drawn = figure(view, x="peak memory (GB)", y="", height=130 + each * len(names))
    peaks = [row.forecast.memory.peak_bytes for bars in settings for row in bars.rows]
    longest = max(peaks, default=1) / 1e9
    for index, bars in enumerate(settings):
        offset = (index - 0.5) * 0.42 if is_pair else 0.0
        positions = [names.index(row.name) + offset for row in bars.rows]
        _stack(drawn, bars, positions, view, width=0.38 if is_pair else 0.66, legend=index == 0)
        if rules:
            below = [names.index(row.name) + 0.5 for row in bars.rows]
            _rules(drawn, bars.rows, below, view, edge=longest * RULES_ROOM)
    _devices(drawn, settings, longest, view)
    for index, bars in enumerate(settings):
        offset = (index - 0.5) * 0.42 if is_pair else 0.0
        _ends(drawn, bars, [names.index(row.name) + offset for row in bars.rows], view)
    drawn.update_layout(
        barmode="stack",
        hovermode="closest",
        legend={"yref": "container", "y": 1, "yanchor": "top", "traceorder": "normal"},
        margin={"l": 8, "r": 16, "t": 70 if drawn.layout.shapes else 40, "b": 44},
    )
    drawn.update_xaxes(range=[0, longest * (RULES_ROOM * 1.05 if rules else ROOM)])
    drawn.update_yaxes(
        range=[len(names) - 0.4, -0.6], showgrid=False, tickvals=list(range(len(names))),
        ticktext=[methods.get(name).title for name in names],
    )  # fmt: skip
    return drawn


def _stack(
    drawn: go.Figure, bars: Bars, positions: list[float], view: View, width: float, legend: bool
) -> None:
    colours = (*view.colours[:5], GREY)
    for colour, (part, title) in zip(colours, TITLES.items(), strict=True):
        drawn.add_trace(
            go.Bar(
                y=positions,
                x=[_at_peak(row).get(part) / 1e9 for row in bars.rows],
                width=width,
                name=title,
                legendgroup=part,
                showlegend=legend,
                orientation="h",
                marker={"color": colour},
                customdata=[f"{row.title} {bars.letter}".strip() for row in bars.rows],
                hovertemplate=f"%{{customdata}}: {title} %{{x:.2f}} GB<extra></extra>",
            )
        )


def _ends(drawn: go.Figure, bars: Bars, positions: list[float], view: View) -> None:
    """ "A 16.2 GB fits" behind each bar, green or red."""
    marks = {True: "✓ fits", False: "✕ too large", None: ""}
    inks = {True: view.colours[3], False: view.colours[4], None: view.quiet}
    verdicts = [row.forecast.memory.fits for row in bars.rows]
    texts = [
        f" {bars.letter} {_short(row.forecast.memory.peak_bytes)} {marks[fits]}"
        for row, fits in zip(bars.rows, verdicts, strict=True)
    ]
    for row, position, text, fits in zip(bars.rows, positions, texts, verdicts, strict=True):
        drawn.add_annotation(
            x=row.forecast.memory.peak_bytes / 1e9, y=position, xanchor="left", xshift=2,
            text=text.replace("  ", " ").strip(), showarrow=False, borderpad=2,
            bgcolor=view.page,  # the line of a device passes behind it
            font={"color": inks[fits], "size": 12},
        )  # fmt: skip


def _short(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else formatting.size(size)


def _rules(
    drawn: go.Figure, rows: list[MethodRow], positions: list[float], view: View, edge: float
) -> None:
    """The rules of thumb that speak of such a run, below the bars of the methods that they mean;
    those beyond the edge as arrows on it."""
    points = [
        (position, claim, value / 1e9, value / row.forecast.memory.peak_bytes - 1)
        for row, position in zip(rows, positions, strict=True)
        if methods.get(row.name).is_standard
        for claim, value in row.forecast.rules.items()
    ]
    drawn.add_trace(
        go.Scatter(
            y=[position for position, *_ in points],
            x=[min(value, edge) for _, _, value, _ in points],
            name="rules of thumb",
            legendgroup="rules",
            showlegend=not any(trace.legendgroup == "rules" for trace in drawn.data),
            mode="markers",
            marker={
                "symbol": [
                    "triangle-right-open" if value > edge else "diamond-open"
                    for _, _, value, _ in points
                ],
                "size": 8,
                "color": view.ink,
                "line": {"width": 1.5, "color": view.ink},
            },
            customdata=[
                [claim, formatting.signed_percent(error), value]
                for _, claim, value, error in points
            ],
            hovertemplate="%{customdata[0]}: %{customdata[2]:.1f} GB (%{customdata[1]})"
            "<extra></extra>",
        )
    )


def _devices(drawn: go.Figure, settings: list[Bars], longest: float, view: View) -> None:
    """A line at each device's memory, where the bars come near it: the bars make the scale."""
    sizes: dict[tuple[str, float], list[str]] = {}
    for bars in settings:
        if bars.device_bytes:
            device = bars.device_name, bars.device_bytes / 1e9
            sizes.setdefault(device, []).append(bars.letter)
    for index, ((name, size), letters) in enumerate(sizes.items()):
        letter = f"{letters[0]} " if len(sizes) > 1 else ""
        if size > longest * ROOM:
            continue
        drawn.add_vline(
            x=size,
            line={"color": view.ink, "width": 1.5, "dash": "dash"},
            annotation={
                "text": f"{letter}{name}: {size:.1f} GB",
                "font": {"color": view.ink, "size": 12},
                "yanchor": "bottom",
                "yshift": 16 * index,
            },
            annotation_position="top",
        )


def _at_peak(row: MethodRow) -> Parts:
    return row.forecast.memory.at_peak or Parts()


def table(settings: list[Bars]) -> list[dict[str, Any]]:
    """The bars as rows of figures in their order, in GB, with the estimated speed, energy and
    disk."""
    names = order(settings)
    lines = []
    for bars in settings:
        for row in sorted(bars.rows, key=lambda row: names.index(row.name)):
            memory, disk = row.forecast.memory, row.forecast.disk or DiskForecast()
            speed = row.forecast.speed or Speed()
            parts = {
                f"{title} (GB)": _at_peak(row).get(part) / 1e9 for part, title in TITLES.items()
            }
            line: dict[str, Any] = {"setting": bars.letter} if bars.letter else {}
            line |= {
                "method": row.title,
                "fits": _fits(memory),
                "peak memory (GB)": memory.peak_bytes / 1e9,
                "tokens/s": None if speed.tokens_per_s is None else round(speed.tokens_per_s),
                "checkpointed layers": checkpointed_layers(row.forecast.settings),
                **parts,
                "phase": memory.peak_phase,
                "Wh per million tokens": speed.wh_per_million_tokens,
                "trained model (GB)": disk.artifact / 1e9,
                "estimate": "traced" if memory.how.is_exact else memory.how.in_words,
            }
            lines.append(line)
    return lines


def _fits(memory: MemoryForecast) -> str:
    if memory.fits is None:
        return "not known" if memory.trace_error else "–"
    return "✓ yes" if memory.fits else "✕ no"


def differences(first: Bars, second: Bars) -> list[dict[str, Any]]:
    """Both settings by method, in GB: what the second one needs more or less."""
    lines = []
    for name in order([first, second]):
        before, after = ((bars.peak(name) or math.nan) / 1e9 for bars in (first, second))
        known = [None if math.isnan(size) else size for size in (before, after, after - before)]
        columns = ("A (GB)", "B (GB)", "B less A (GB)")
        lines.append({"method": methods.get(name).title} | dict(zip(columns, known, strict=True)))
    return lines


def held_against(rows: list[MethodRow]) -> list[dict[str, Any]]:
    """Every rule of thumb next to the estimate for the run that it speaks of."""
    seen: set[str] = set()
    lines = []
    for row in sorted(rows, key=lambda row: not methods.get(row.name).is_standard):
        peak = row.forecast.memory.peak_bytes
        for claim, value in row.forecast.rules.items():
            if claim in seen:
                continue  # the usual method of a kind stands for it
            seen.add(claim)
            lines.append(
                {
                    "claim": claim,
                    "rule of thumb": rules_of_thumb.says(claim),
                    "method": row.title,
                    "rule (GB)": value / 1e9,
                    "estimate (GB)": peak / 1e9,
                    "error": value / peak - 1,
                }
            )
    return lines


def as_csv(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV with one header line."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
