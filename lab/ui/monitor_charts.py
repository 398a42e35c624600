"""The charts of the Monitor page, and how a person wants to see them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from lab.atomic_files import finite_number
from lab.errors import LabError
from lab.paths import RunDir, run_dir
from lab.recent import Recent
from lab.runs import checkpoints, index
from lab.runs.metric_series import AXES, MetricSeries, series_of
from lab.ui import chart_style, charts, checkpoint_panel
from lab.ui.chart_style import View, is_dark
from lab.ui.markdown_safety import plain

TITLES = {"step": "Steps", "tokens": "Tokens", "seconds": "Time"}
OVERLAY = "monitor.overlay"
MEANINGS = {
    "loss": "How surprised the model is by the right next token: the lower, the better it predicts "
    "the data. Training loss that falls while evaluation loss rises means that it memorises the "
    "training examples.",
    "memory": "What the run holds in memory, second by second. The dotted line is the estimate "
    "from before the start, the dashed one the highest value so far.",
    "throughput": "Tokens that pass through the model each second. A lasting drop means that "
    "something else uses the machine.",
    "learning-rate": "How far each step moves the weights. It rises during warm-up and then "
    "follows the schedule down.",
    "gradient-norm": "How strongly the examples of a step pull on the weights. Growing peaks are a "
    "sign of divergence; a lower learning rate helps.",
    "forgetting": "How much less likely the model finds what its base answers to general prompts. "
    "The band is what another choice of prompts may change; within it nothing is shown to be "
    "forgotten. Mixing general data in keeps it low.",
    "rank": "How many directions the adapter's updates use of the rank r that they could have: far "
    "below r means that a lower r would do. Where the effective rank falls towards 1, the updates "
    "have collapsed, and a lower learning rate helps.",
    "condition": "The largest singular value of an update over its smallest. Thousands mean that "
    "part of the rank is hardly used.",
    "power": "The power that the GPU draws. Much less than its limit means that it waits for "
    "something.",
}

Charts = dict[str, tuple[str, Any]]  # key → (title, figure)
_drawn: Recent[tuple[str, str, View], tuple[Any, Charts]] = Recent(24)


def controls(run: RunDir) -> View:
    """How to look at the charts; kept while the session lasts."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        by = st.segmented_control(
            "X axis", list(AXES), format_func=TITLES.get, default="step", key="monitor.by",
            required=True, persist_state="session",
        )  # fmt: skip
        smoothing = st.slider(
            "Smoothing", 0.0, 0.95, 0.6, 0.05, key="monitor.smooth", width=110,
            persist_state="session",
        )  # fmt: skip
        _choose_overlay(run)
        log = st.toggle("Log scale", key="monitor.log", persist_state="session")
    return View(str(by), float(smoothing), bool(log), is_dark())


def _choose_overlay(run: RunDir) -> None:
    """Another run, whose evaluation loss is drawn too; the address names it as `with`."""
    names = {
        entry.id: str(plain(f"{entry.name or entry.id} · {entry.method}"))
        for entry in index.entries()
        if entry.id != run.id
    }
    if not names:
        return
    chosen = st.query_params.get("with")
    st.session_state[OVERLAY] = chosen if chosen in names else None

    def change() -> None:
        st.query_params.pop("with", None)
        if st.session_state[OVERLAY]:
            st.query_params["with"] = st.session_state[OVERLAY]

    st.selectbox(
        "Overlay a run", list(names), index=None, key=OVERLAY, format_func=names.get,
        on_change=change, placeholder="none", width=160, persist_state="session",
    )  # fmt: skip


def overlaid() -> MetricSeries | None:
    """The series of the run that the address overlays."""
    chosen = st.query_params.get("with", "")
    try:
        return series_of(run_dir(chosen)) if chosen else None
    except LabError:
        return None


def charts_of(series: MetricSeries, view: View, other: MetricSeries | None = None) -> Charts:
    """Every chart that there is something to draw for.

    Drawn once for all who look at the same run in the same way, until there is something new.
    """
    key = (series.run.id, other.run.id if other else "", view)
    with series.lock:  # another viewer's refresh would lengthen one column before the next
        version = (
            series.train.attempt,
            series.train.length,
            series.evaluation.length,
            series.probe.length,
            series.device.length // 5,
            other.evaluation.length if other else 0,
            tuple(map(str, checkpoints.listing(series.run.checkpoints))),
        )
        cached = _drawn.get(key)
        if cached is None or cached[0] != version:
            cached = _drawn.put(key, (version, _draw(series, view, other)))
    return cached[1].copy()


def pace(run: RunDir) -> float:
    """Seconds between two looks at the charts: there is nothing new before the next step."""
    step_s = finite_number(series_of(run).train.last("perf/step_s")) or 1.0
    return float(min(5, max(1, round(step_s))))


def _draw(series: MetricSeries, view: View, other: MetricSeries | None) -> Charts:
    train, device = series.train, series.device
    figures: Charts = {"loss": ("Loss", charts.loss(series, view, other))}
    if device.length:
        figures["memory"] = ("Memory", charts.memory(series, view))
    for key, title, axis in (
        ("perf/tokens_per_s", "Throughput", "tokens/s"),
        ("train/learning_rate", "Learning rate", "learning rate"),
        ("train/grad_norm", "Gradient norm", "gradient norm (before clipping)"),
    ):
        if train.has(key):
            figures[title.lower().replace(" ", "-")] = (
                title,
                charts.single(series, key, axis, view),
            )
    if series.probe.has("probe/rise"):
        figures["forgetting"] = ("Forgetting", charts.forgetting(series, view))
    if series.evaluation.has("rank/effective"):
        figures["rank"] = ("Rank of the updates", charts.update_rank(series, view))
        figures["condition"] = ("Condition number", charts.condition(series, view))
    if device.has("nvml/power_w"):
        figures["power"] = ("Power", charts.power(series, view))
    return figures


def has_curves(run: RunDir) -> bool:
    series = series_of(run)
    return bool(series.train.length) or series.evaluation.base is not None


def show_loss(run: RunDir, view: View) -> None:
    view = replace(view, dark=is_dark())  # the theme may have changed since the page was drawn
    series = series_of(run)
    title, figure = charts_of(series, view, overlaid())["loss"]
    base, last = series.evaluation.base, finite_number(series.evaluation.last("eval/loss"))
    name = index.entry(run).name or run.id
    alt = f"{title} of {name}"
    if base is not None and last is not None:
        alt = f"Evaluation loss of {name}, from {base['eval/loss']:.2f} to {last:.2f}"
    event = _chart("loss", title, figure, run, alt, selects=True)
    step = checkpoint_panel.clicked(event)
    if step is not None:
        checkpoint_panel.show(run, step)
    elif checkpoints.listing(run.checkpoints):
        st.caption("Squares are checkpoints: click one to chat with it or to measure it.")


def show_others(run: RunDir, view: View) -> None:
    view = replace(view, dark=is_dark())
    figures = charts_of(series_of(run), view, overlaid())
    figures.pop("loss")
    grid = st.grid("auto", min_column_width=255, gap="small")
    for key, (title, figure) in figures.items():
        with grid.cell(), st.container(border=True):
            _chart(key, title, figure, run, f"{title} of {index.entry(run).name or run.id}")


def _chart(
    key: str, title: str, figure: Any, run: RunDir, alt: str, *, selects: bool = False
) -> Any:
    """Draws it; what was clicked where it `selects`."""
    st.markdown(f"**{title}**", help=MEANINGS.get(key))
    return chart_style.show(figure, f"chart.{key}.{run.id}", alt, selects=selects)
