"""The memory of the run that the form describes, while it is being filled in."""

from __future__ import annotations

import json
import time
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from lab import formatting
from lab.errors import SpecError
from lab.forecasts import DiskForecast, Forecast, How, Parts, RuntimeForecast, rows_in_words
from lab.preflight.client import Abandoned, planner
from lab.recent import Recent
from lab.ui import chart_style, hub_fields, memory_charts
from lab.ui.chart_style import View, figure, is_dark
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown
from lab.ui.waiting import BackgroundJob, failure

DEBOUNCE_S = 1.5  # if the form is not polled for this long, its values have changed


class EstimateJob(BackgroundJob):
    """The outline of a step of full rows, then the traced step of the run's own rows, for one state
    of the form."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.estimate: Forecast | None = None
        self.seen_at = time.monotonic()

    def ask(self) -> None:
        self.estimate = planner.estimate(self.spec, shadow=False)
        # a processor's figure has a margin, and runs are admitted with that of the outline
        if not self.estimate.memory.has_margin:
            time.sleep(DEBOUNCE_S)
            # a little less: the look that began this may be noted after it has begun
            if time.monotonic() - self.seen_at > 0.8 * DEBOUNCE_S:
                raise Abandoned
        # with its own rows, and how long it takes: reads the data, so it comes last
        is_traced = not self.estimate.memory.has_margin
        self.estimate = planner.estimate(self.spec, shadow=is_traced, time=True)


_jobs: Recent[str, EstimateJob] = Recent(32)


def job_for(spec: dict[str, Any]) -> EstimateJob:
    """The estimate of `spec` as far as it is known; asked at the first look."""
    key = json.dumps(spec, sort_keys=True, default=str)
    job = _jobs.get_or(key, lambda: EstimateJob(spec).start(), is_stale=lambda job: job.is_stale)
    job.seen_at = time.monotonic()
    return job


def panel(spec: dict[str, Any], side: str = "") -> None:
    """The estimate of `spec`, refreshed until it is complete. `side` tells the sides of a pair
    apart and is their title."""
    job = job_for(spec)
    job.look(f"forecast {side}")
    was_complete = job.is_complete

    @fragment(run_every=None if was_complete else 1.0)
    def answer() -> None:
        job = job_for(spec)
        job.look(f"forecast {side}")
        show(job, View(dark=is_dark()), side)
        if job.is_complete and not was_complete:
            st.rerun()

    answer()


def show(job: EstimateJob, view: View, side: str = "") -> None:
    """MEMORY, one bar of what the peak is made of with its legend, and TIME AND DISK."""
    forecast = job.estimate
    with st.container(border=True):
        st.caption(f"MEMORY {escape_markdown(side)}".upper().strip())
        if forecast is None:
            if isinstance(job.error, SpecError):  # each stands beside its field after a check
                st.markdown(":gray[Fix the problems in the form to see the memory estimate.]")
            elif not job.is_complete:
                st.markdown(":gray[Reading the model configuration …]")
            else:
                failure(job, f"new.forecast.{side}")
            return
        _memory(forecast, view, side, is_complete=job.is_complete)
        failure(job, f"new.forecast.{side}")
        if words := hub_fields.download_in_words(forecast.download):
            st.markdown(words)
    if forecast.runtime:
        with st.container(border=True):
            st.caption("TIME AND DISK")
            _time(forecast.runtime, forecast.disk)


def _memory(forecast: Forecast, view: View, side: str, *, is_complete: bool) -> None:
    memory, free_bytes = forecast.memory, forecast.device_bytes
    basis = memory.how.in_words
    if memory.how is How.OUTLINE:
        basis = "quick estimate" if is_complete else "quick estimate; tracing one step …"
        basis = "estimate with a margin" if memory.has_margin else basis
    room = f" of {free_bytes / 1e9:.1f}" if free_bytes else ""
    st.markdown(
        f"#### {memory.peak_bytes / 1e9:.1f}{room} GB :small[:gray[peak in the "
        f"{escape_markdown(memory.peak_phase)} phase, {basis}]]"
    )
    chart_style.show(
        bar(forecast, view), f"new.forecast.{side}",
        "Peak memory by part, compared with free memory",
    )  # fmt: skip
    st.markdown(legend(memory.at_peak or Parts()))
    if rows := rows_in_words(forecast.settings):
        st.caption(rows[0].upper() + rows[1:])
    if memory.fits is False:
        st.warning(
            'This run will not fit. "What would fit" in the bar below names changes that do.'
        )
    elif memory.trace_error:
        st.warning("Whether it fits is not known: this model's step cannot be traced.")


LEGEND = ("blue", "orange", "violet", "green", "red", "gray")  # as the bar, in the theme's hues
MIN_SHOWN_BYTES = 5e6  # a part below it would read 0.00 GB


def legend(sizes: Parts) -> str:
    """The parts of the bar with their GB, as Markdown."""
    return " \u2003".join(
        f":{colour}[●] {title} {sizes.get(part) / 1e9:.2f}".replace(" ", "\u00a0")
        for colour, (part, title) in zip(LEGEND, memory_charts.TITLES.items(), strict=True)
        if sizes.get(part) >= MIN_SHOWN_BYTES
    )


def _time(runtime: RuntimeForecast, disk: DiskForecast | None) -> None:
    """How long it takes, what for, and the energy and disk that it takes."""
    grid = st.grid(3, min_column_width=110)
    grid.metric("Run time", formatting.duration(runtime.whole_s))
    grid.metric("Tokens", f"{runtime.tokens:,}")
    grid.metric("Disk", formatting.size(disk.total if disk else None))
    steps = formatting.quantity(runtime.steps, "step")
    energy = f" · {runtime.energy_wh:,.1f} Wh" if runtime.energy_wh else ""
    basis = (
        "from finished runs on this machine"
        if runtime.is_measured
        else "rough: no finished run on this machine to calibrate it"
    )
    training = f"training {formatting.duration(runtime.seconds)}"
    if runtime.probing_s:
        training += f", forgetting probe {formatting.duration(runtime.probing_s)}"
    st.caption(f"{steps}, {training}{energy} · {basis}")


def bar(forecast: Forecast, view: View) -> go.Figure:
    """The parts at the peak as one stacked bar; the line is what is free."""
    chart = figure(view, x="", y="", height=64)
    colours = (*view.colours[:5], memory_charts.GREY)
    sizes = forecast.memory.at_peak or Parts()
    for colour, (part, title) in zip(colours, memory_charts.TITLES.items(), strict=True):
        chart.add_trace(
            go.Bar(
                x=[sizes.get(part) / 1e9],
                y=[""],
                name=title,
                orientation="h",
                marker={"color": colour},
                hovertemplate=f"{title} %{{x:.2f}} GB<extra></extra>",
            )
        )
    free_bytes = forecast.device_bytes
    if free_bytes and free_bytes < 2 * forecast.memory.peak_bytes:
        chart.add_vline(
            x=free_bytes / 1e9,
            line={"color": view.ink, "width": 2, "dash": "dash"},
            annotation={"text": f"free {free_bytes / 1e9:.1f} GB", "font_color": view.ink},
            annotation_position="top left",
        )
    chart.update_layout(
        barmode="stack", showlegend=False, hovermode="closest", bargap=0.2,
        margin={"l": 0, "r": 8, "t": 4, "b": 4},
    )  # fmt: skip
    chart.update_xaxes(ticksuffix=" GB", rangemode="tozero")
    chart.update_yaxes(showticklabels=False, showgrid=False)
    return chart
