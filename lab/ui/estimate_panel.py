"""The memory of the run that the form describes, while it is being filled in."""

from __future__ import annotations

import json
import time
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from lab import formatting
from lab.errors import SpecError
from lab.forecasts import DiskForecast, Forecast, How, Parts, RuntimeForecast
from lab.preflight.client import Abandoned, planner
from lab.recent import Recent
from lab.ui import hub_fields, memory_charts
from lab.ui.charts import CONFIG, View, figure
from lab.ui.markdown_safety import escape_markdown
from lab.ui.monitor_view import is_dark
from lab.ui.waiting import BackgroundJob

STILL_S = 1.5  # if the form is not polled for this long, its values have changed


class EstimateJob(BackgroundJob):
    """The outline of the step, then the traced step, for one state of the form."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.estimate: Forecast | None = None
        self.seen_at = time.monotonic()

    @property
    def problem(self) -> str:
        if isinstance(self.error, SpecError):  # each stands beside its field after a check
            return "The memory is predicted when the form has no problems."
        return str(self.error or "")

    def ask(self) -> None:
        self.estimate = planner.estimate(self.spec, shadow=False)
        # a processor's figure is a bound, and runs are admitted with that of the outline
        if not self.estimate.memory.is_bound:
            time.sleep(STILL_S)
            # a little less: the look that began this may be noted after it has begun
            if time.monotonic() - self.seen_at > 0.8 * STILL_S:
                raise Abandoned
            self.estimate = planner.estimate(self.spec)
        # how long it takes: reads some of the data, so it comes last
        is_traced = not self.estimate.memory.is_bound
        self.estimate = planner.estimate(self.spec, shadow=is_traced, time=True)


_jobs: Recent[str, EstimateJob] = Recent(32)


def job_for(spec: dict[str, Any]) -> EstimateJob:
    """The estimate of `spec` as far as it is known; asked at the first look."""
    key = json.dumps(spec, sort_keys=True, default=str)
    job = _jobs.get_or(key, lambda: EstimateJob(spec).start(), is_stale=lambda job: job.is_stale)
    job.seen_at = time.monotonic()
    return job


def panel(spec: dict[str, Any]) -> None:
    """The predicted memory of `spec`, refreshed until the prediction is complete."""
    job = job_for(spec)
    job.look("forecast")
    was_complete = job.is_complete

    @st.fragment(run_every=None if was_complete else 1.0)
    def answer() -> None:
        job = job_for(spec)
        job.look("forecast")
        show(job, View(dark=is_dark()))
        if job.is_complete and not was_complete:
            st.rerun()

    answer()


def show(job: EstimateJob, view: View) -> None:
    """One bar of what the peak is made of, against what the device has, and a sentence."""
    forecast = job.estimate
    if forecast is None:
        words = escape_markdown(job.problem) if job.is_complete else "Looking at the model …"
        st.caption(f":material/memory_alt: {words}")
        return
    memory, room = forecast.memory, forecast.device_bytes
    how = memory.how.in_words
    if memory.how is How.OUTLINE:
        how = "a bound" if memory.is_bound else "about, the step is being traced …"
    free = f", {formatting.size(room)} free" if room else ""
    st.markdown(
        f":material/memory_alt: **{formatting.size(memory.peak_bytes)}** of memory at the peak "
        f"({escape_markdown(memory.peak_phase)}; {how}){free}"
    )
    if words := hub_fields.download_in_words(forecast.download):
        st.markdown(words)
    if forecast.runtime:
        st.markdown(f":material/timer: {time_in_words(forecast.runtime, forecast.disk)}")
    st.plotly_chart(
        bar(forecast, view), key="new.forecast", theme=None, config=CONFIG,
        alt="Memory at the peak by part, against the device's free memory",
    )  # fmt: skip
    if memory.fits is False:
        st.warning("It will not fit as it is. Start says the smallest change that does.")
    elif memory.trace_error:
        st.warning("Whether it fits is not known: this model's step cannot be traced.")


def time_in_words(runtime: RuntimeForecast, disk: DiskForecast | None) -> str:
    """The predicted time, what it is for, and the energy and disk that it takes."""
    seconds = runtime.seconds + runtime.evaluating_s
    steps = "1 step" if runtime.steps == 1 else f"{runtime.steps:,} steps"
    words = f"about **{formatting.duration(seconds)}** for {steps}, {runtime.tokens:,} tokens"
    if runtime.energy_wh:
        words += f", {runtime.energy_wh:,.1f} Wh"
    if disk:
        words += f", up to {formatting.size(disk.total)} of disk"
    return words if runtime.is_measured else f"{words} (rough, until a run has finished here)"


def bar(forecast: Forecast, view: View) -> go.Figure:
    """The parts at the peak as one stacked bar; the line is what is free."""
    chart = figure(view, x="", y="", height=96)
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
    room = forecast.device_bytes
    if room and room < 8 * forecast.memory.peak_bytes:
        chart.add_vline(x=room / 1e9, line={"color": view.colours[3], "width": 2, "dash": "dash"})
    chart.update_layout(
        barmode="stack", showlegend=False, hovermode="closest", bargap=0.2,
        margin={"l": 0, "r": 8, "t": 4, "b": 4},
    )  # fmt: skip
    chart.update_xaxes(ticksuffix=" GB", rangemode="tozero")
    chart.update_yaxes(showticklabels=False, showgrid=False)
    return chart
