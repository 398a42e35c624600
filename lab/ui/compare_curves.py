"""The curves of Compare over each other, and who leads at a point of the axis."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from lab.compare.contestants import Contestant
from lab.compare.curves import (
    MEASURES,
    Curve,
    LeadChange,
    Standing,
    axes_of,
    curve,
    lead_changes,
    measures_of,
    standings,
)
from lab.formatting import quantity, signed
from lab.runs.metric_series import ema
from lab.ui import chart_style, colours, compare_point
from lab.ui.chart_style import End, View, figure, finish, is_dark, level, line
from lab.ui.charts import FROM_MINUTES_S
from lab.ui.compare_price import price
from lab.ui.compare_runs import name_of, plain_name
from lab.ui.fragments import fragment

Y, BY, LOG, AT = "compare.y", "compare.by", "compare.log", "compare.at"
HEIGHT = 330
LEFT, RIGHT = 64, 150  # pixels beside the plot, as lab.css has them for the scrubber
MAX_NAME_CHARS = 20  # characters at the end of a curve
TITLES = {
    "step": "Steps", "tokens": "Tokens", "seconds": "Time", "flops": "FLOPs",
    "energy": "Energy", "cost": "Cost",
}  # fmt: skip
MEASURE_TITLES = {
    "eval/loss": ("Evaluation loss", "evaluation loss (nats per token)"),
    "train/loss": ("Training loss", "training loss, smoothed (nats per token)"),
    "probe/rise": ("Forgetting", "rise of the loss on the base's own answers (nats per token)"),
    "probe/kl": ("KL from the base", "KL divergence from the base (nats per token)"),
    "probe/ended": ("Answers that end", "share of general answers that end by themselves"),
    "probe/answer_tokens": ("Answer length", "mean length of general answers (tokens)"),
    "perf/tokens_per_s": ("Tokens per second", "tokens/s"),
    "memory/peak_bytes": ("Peak memory", "peak memory (bytes)"),
    "rank/effective": ("Effective rank", "effective rank of the updates (median)"),
    "rank/stable": ("Stable rank", "stable rank of the updates (median)"),
    "rank/condition": ("Condition number", "condition number of the updates (median)"),
    "train/grad_norm": ("Gradient norm", "gradient norm (before clipping)"),
    "train/learning_rate": ("Learning rate", "learning rate"),
}
SMOOTHED = ("train/loss", "train/grad_norm", "perf/tokens_per_s")
SMOOTHING = 0.9
MAX_NAMED, MAX_CHANGES = 4, 3


def show(shown: list[Contestant], with_base: bool) -> None:
    """Controls, curves, scrubber and the sentence; drawn anew alone when the scrubber moves."""
    with st.container(border=True, key="compare-curves"):
        fragment(_curves)(shown, with_base)


def _curves(shown: list[Contestant], with_base: bool) -> None:
    measures = measures_of(shown)
    if not measures:
        st.caption("No steps yet: the curves begin with the first evaluation.")
        return
    key, by, log = _controls(measures, shown)
    usd = price(shown) if by == "cost" else 0.0
    if by == "cost" and not usd:
        st.caption("Set the price of an hour on this machine to see the curves over cost.")
        return
    curves = {each.id: line for each in shown if (line := curve(each, key, by, usd)) is not None}
    if not curves:
        st.caption("None of the runs shown has this measurement yet.")
        return
    if key in SMOOTHED:
        curves = {name: Curve(c.x, ema(c.y, SMOOTHING)) for name, c in curves.items()}
    scale, unit, title = x_scale(by, max(float(each.x[-1]) for each in curves.values()))
    slot = st.container()
    at = _scrubber(curves, scale, unit)
    by_id = {each.id: each for each in shown}
    base = base_loss(shown) if with_base and key == "eval/loss" else None
    chart = draw(curves, by_id, key, title, scale, at, base, View(by, 0.0, log, is_dark()))
    better = MEASURES[key]
    ranks = standings(curves, at, better)
    changes = lead_changes(curves, better) if better else None
    words = sentence(ranks, by_id, at / scale, unit, changes, scale)
    alt = f"{MEASURE_TITLES[key][0]} of {quantity(len(curves), 'run')} over {TITLES[by].lower()}"
    _pass_clicks_on(chart)
    with slot:  # a click belongs to what is drawn: another axis has none
        event = chart_style.show(chart, f"compare.chart.{key}.{by}", alt, selects=True)
    st.markdown(words)
    clicked = compare_point.clicked_at(event)
    if clicked is None:
        st.caption("Click the curves to chat with the checkpoints of that point.")
    else:
        compare_point.show([by_id[name] for name in curves], by, clicked * scale, usd)


def _controls(measures: list[str], shown: list[Contestant]) -> tuple[str, str, bool]:
    """(measure, axis, whether the scale is logarithmic), each in the address."""
    axes = [*axes_of(shown), "cost"]
    _from_address(Y, "y", measures)
    _from_address(BY, "by", axes)
    if LOG not in st.session_state:
        st.session_state[LOG] = st.query_params.get("log") == "1"
    with st.container(
        horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"
    ):
        left = st.container(horizontal=True, vertical_alignment="center", width="content")
        key = left.selectbox(
            "Measure", measures, key=Y, format_func=lambda name: MEASURE_TITLES[name][0],
            label_visibility="collapsed", width=200, persist_state="session",
        )  # fmt: skip
        by = left.segmented_control(
            "X axis", axes, key=BY, format_func=TITLES.get, required=True,
            label_visibility="collapsed", persist_state="session",
        )  # fmt: skip
        log = st.toggle("Log scale", key=LOG, persist_state="session")
    st.query_params["y"], st.query_params["by"] = key, str(by)
    if log:
        st.query_params["log"] = "1"
    else:
        st.query_params.pop("log", None)
    return key, str(by), bool(log)


def _from_address(key: str, name: str, options: list[str]) -> None:
    """The widget's value: what the session has, else the address, else the first option."""
    if st.session_state.get(key) not in options:
        requested = st.query_params.get(name)
        st.session_state[key] = requested if requested in options else options[0]


def x_scale(by: str, widest: float) -> tuple[float, str, str]:
    """(what values are divided by, the unit, the title of the axis)."""
    if by == "seconds":
        minutes = widest >= FROM_MINUTES_S
        scale, unit = (60.0, "min") if minutes else (1.0, "s")
        return scale, unit, f"training time ({unit})"
    if by == "flops":
        power = max(0, min(5, int(math.log10(max(widest, 1.0)) // 3) - 2))
        unit = ("MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs", "EFLOPs", "ZFLOPs")[power]
        return 10.0 ** (6 + 3 * power), unit, f"model FLOPs ({unit})"
    if by == "energy":
        scale, unit = (1000.0, "kWh") if widest >= 1000 else (1.0, "Wh")
        return scale, unit, f"energy ({unit})"
    if by == "cost":
        return 1.0, "USD", "cost (USD)"
    return 1.0, "steps" if by == "step" else "tokens", "step" if by == "step" else "tokens"


def _scrubber(curves: dict[str, Curve], scale: float, unit: str) -> float:
    """Where on the axis, in its own units; at first where the shortest run ended."""
    widest = max(float(each.x[-1]) for each in curves.values()) / scale
    shortest = min(float(each.x[-1]) for each in curves.values()) / scale
    if widest <= 0:
        return 0.0
    step = 1.0 if unit in ("steps", "tokens") else 10.0 ** (math.floor(math.log10(widest)) - 2)
    top = math.ceil(widest / step - 1e-9) * step
    digits = max(0, -math.floor(math.log10(step)))
    key = f"{AT}.{unit}"
    is_opened = "at" not in st.query_params  # perhaps with other runs than last time
    if is_opened or key not in st.session_state or not 0 <= st.session_state[key] <= top:
        try:
            requested = float(st.query_params.get("at", ""))
        except ValueError:
            requested = shortest
        st.session_state[key] = min(max(0.0, round(requested, digits)), top)
    if top <= step:
        return float(shortest * scale)
    with st.container(key="compare-scrubber"):
        at = st.slider(
            "Who leads at", 0.0, float(top), key=key, step=step,
            format=f"%.{digits}f {unit}", label_visibility="collapsed", persist_state="session",
        )  # fmt: skip
    st.query_params["at"] = f"{at:.{digits}f}"
    return float(at) * scale


def base_loss(shown: list[Contestant]) -> float | None:
    values = [each.value("base_loss") for each in shown]
    return next((value for value in values if value is not None), None)


def dashes(shown: list[Contestant]) -> dict[str, str]:
    """How each line is drawn: dashed where an earlier one has its colour."""
    seen: set[str] = set()
    styles = {}
    for each in shown:
        colour = each.first.entry.colour
        styles[each.id] = "dash" if colour in seen else "solid"
        seen.add(colour)
    return styles


def draw(
    curves: dict[str, Curve],
    by_id: dict[str, Contestant],
    key: str,
    x_title: str,
    scale: float,
    at: float | None,
    base: float | None,
    view: View,
) -> go.Figure:
    """Lines with their names at the ends, bands of 95 %, the base dotted, a line at `at`."""
    chart = figure(view, x=x_title, y=MEASURE_TITLES[key][1], height=HEIGHT, log=view.log)
    ends: list[End] = []
    styles = dashes([by_id[name] for name in curves])
    for name, each in curves.items():
        contestant = by_id[name]
        colour = colours.hex_of(contestant.first.entry.colour, view.dark)
        title = plain_name(contestant)
        x = each.x / scale
        if each.half is not None and not view.log:
            _band(chart, x, each.y, each.half, colour)
        line(chart, x, each.y, title, colour, dash=styles[name])
        _end_marker(chart, x, each.y, colour, hollow=styles[name] == "dash")
        short = title if len(title) <= MAX_NAME_CHARS else f"{title[: MAX_NAME_CHARS - 1]}…"
        ends.append(End(short, float(each.y[-1]), colour, float(x[-1])))
    if base is not None and math.isfinite(base) and (base > 0 or not view.log):
        level(chart, base, view.quiet)
        ends.append(End(f"base {base:.2f}", base, view.quiet))
    finish(chart, ends, log=view.log)
    chart.layout.margin.l, chart.layout.margin.r = LEFT, RIGHT
    chart.layout.yaxis.automargin = False
    if at is not None:
        chart.add_shape(
        type="line", yref="paper", y0=0, y1=1, x0=at / scale, x1=at / scale,
        line={"color": view.ink, "width": 1.5},
        )  # fmt: skip
    return chart


def _pass_clicks_on(chart: go.Figure) -> None:
    """A browser never tells a click on a curve without markers. What is not clicked stays as it
    is."""
    for trace in chart.data:
        if trace.mode == "markers":
            trace.update(unselected={"marker": {"opacity": 1}})
        if trace.mode == "lines" and trace.hoverinfo != "skip":
            trace.update(
                mode="lines+markers", marker={"opacity": 0, "size": 10},
                selected={"marker": {"opacity": 0}}, unselected={"marker": {"opacity": 0}},
            )  # fmt: skip


def _end_marker(chart: go.Figure, x: np.ndarray, y: np.ndarray, colour: str, hollow: bool) -> None:
    chart.add_trace(
        go.Scatter(
            x=x[-1:], y=y[-1:], mode="markers", showlegend=False, hoverinfo="skip",
            cliponaxis=False,
            marker={
                "size": 9, "color": colour, "symbol": "circle-open" if hollow else "circle",
                "line": {"width": 2, "color": colour},
            },
        )
    )  # fmt: skip


def _band(chart: go.Figure, x: np.ndarray, y: np.ndarray, half: np.ndarray, colour: str) -> None:
    known = np.isfinite(half)
    x, y, half = x[known], y[known], half[known]
    red, green, blue = (int(colour[index : index + 2], 16) for index in (1, 3, 5))
    chart.add_trace(
        go.Scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([y + half, (y - half)[::-1]]),
            fill="toself", fillcolor=f"rgba({red},{green},{blue},0.13)", line={"width": 0},
            mode="lines", hoverinfo="skip", showlegend=False,
        )
    )  # fmt: skip


def sentence(
    ranks: list[Standing],
    by_id: dict[str, Contestant],
    at: float,
    unit: str,
    changes: list[LeadChange] | None,
    scale: float,
) -> str:
    """ "At 2.1 min wren full leads with 2.49 · wren lora +0.10 · the lead changes at 3.0 min, then
    wren lora stays ahead" as Markdown. `changes`: None where neither direction is better, so that
    nobody leads: "At 2.1 min wren full is at 3.1 · wren lora is at 2.4"."""
    parts = []
    running = [rank for rank in ranks if rank.ended_at is None]
    for index, rank in enumerate(ranks[:MAX_NAMED]):
        name = name_of(by_id[rank.id])
        if rank.ended_at is not None:
            where = axis_text(rank.ended_at / scale, unit)
            parts.append(f"{name} ended at {where} with {value_text(rank.value)}")
        elif index == 0:
            leads = "is at" if len(ranks) == 1 or changes is None else "leads with"
            parts.append(f"**At {axis_text(at, unit)} {name} {leads} {value_text(rank.value)}**")
        elif changes is None:
            parts.append(f"{name} is at {value_text(rank.value)}")
        else:
            parts.append(f"{name} {_behind(rank.behind)}")
    if not running:
        parts.insert(0, f"**At {axis_text(at, unit)} all have ended**")
    if changes and len(by_id) > 1:
        parts.append(_changes(changes, by_id, unit, scale))
    return " · ".join(parts)


def _changes(
    changes: list[LeadChange], by_id: dict[str, Contestant], unit: str, scale: float
) -> str:
    last = changes[-1]
    stays = f"then {name_of(by_id[last.leader])} stays ahead"
    where = [axis_text(change.at / scale, unit) for change in changes]
    if len(changes) > MAX_CHANGES:
        return f"the lead changes {len(changes)} times, the last time at {where[-1]}, {stays}"
    places = where[0] if len(where) == 1 else f"{', '.join(where[:-1])} and {where[-1]}"
    return f"the lead changes at {places}, {stays}"


def _behind(value: float) -> str:
    return signed(value) if abs(value) < 1000 else f"{value:+,.3g}"


def value_text(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"


def axis_text(value: float, unit: str) -> str:
    """ "2.1 min", "1,200 tokens", "0.02 USD"."""
    if unit in ("steps", "tokens"):
        return f"{value:,.0f} {unit}" if unit == "tokens" else f"step {value:,.0f}"
    return f"{value:.1f} {unit}" if value >= 0.1 or not value else f"{value:.2g} {unit}"
