"""The memory of the run that the form describes, while it is being filled in."""

from __future__ import annotations

import json
import time
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from lab import formatting
from lab.errors import SpecError
from lab.preflight.client import Abandoned, planner
from lab.recent import Recent
from lab.ui import memory_charts
from lab.ui.chart_style import CONFIG, View, figure, is_dark
from lab.ui.markdown_safety import escape_markdown
from lab.ui.waiting import BackgroundJob

STILL_S = 1.5  # if the form is not polled for this long, its values have changed


class EstimateJob(BackgroundJob):
    """The outline of the step, then the traced step, for one state of the form."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.estimate: dict[str, Any] | None = None
        self.seen_at = time.monotonic()

    @property
    def problem(self) -> str:
        if isinstance(self.error, SpecError):  # each stands beside its field after a check
            return "Fix the problems in the form to see the memory estimate."
        return str(self.error or "")

    def ask(self) -> None:
        self.estimate = planner.estimate(self.spec, shadow=False)
        # a processor's figure is a bound, and runs are admitted with that of the outline
        if not self.estimate["is_bound"]:
            time.sleep(STILL_S)
            # a little less: the look that began this may be noted after it has begun
            if time.monotonic() - self.seen_at > 0.8 * STILL_S:
                raise Abandoned
            self.estimate = planner.estimate(self.spec)
        # how long it takes: reads some of the data, so it comes last
        is_traced = not self.estimate["is_bound"]
        self.estimate = planner.estimate(self.spec, shadow=is_traced, time=True)


_jobs: Recent[str, EstimateJob] = Recent(32)


def job_for(spec: dict[str, Any]) -> EstimateJob:
    """The estimate of `spec` as far as it is known; asked at the first look."""
    key = json.dumps(spec, sort_keys=True, default=str)
    job = _jobs.get_or(key, lambda: EstimateJob(spec).start(), is_stale=lambda job: job.is_stale)
    job.seen_at = time.monotonic()
    return job


def panel(spec: dict[str, Any], place: str = "") -> None:
    """The estimate of `spec`, refreshed until it is complete. `place` tells the sides of a pair
    apart and is their title."""
    job = job_for(spec)
    job.look(f"forecast {place}")
    was_complete = job.is_complete

    @st.fragment(run_every=None if was_complete else 1.0)
    def answer() -> None:
        job = job_for(spec)
        job.look(f"forecast {place}")
        show(job, View(dark=is_dark()), place)
        if job.is_complete and not was_complete:
            st.rerun()

    answer()


def show(job: EstimateJob, view: View, place: str = "") -> None:
    """MEMORY, one bar of what the peak is made of with its legend, and TIME AND DISK."""
    estimate = job.estimate
    with st.container(border=True):
        st.caption(f"MEMORY {escape_markdown(place)}".upper().strip())
        if estimate is None:
            message = escape_markdown(job.problem) if job.is_complete else ""
            st.markdown(f":gray[{message or 'Reading the model configuration …'}]")
            return
        _memory(estimate, view, place)
    if estimate.get("pace"):
        with st.container(border=True):
            st.caption("TIME AND DISK")
            _time(estimate)


def _memory(estimate: dict[str, Any], view: View, place: str) -> None:
    basis = formatting.estimated_by(estimate["source"])
    if estimate["source"] == "outline":
        basis = "upper bound" if estimate["is_bound"] else "quick estimate; tracing one step …"
    free_bytes = estimate.get("device_bytes")
    room = f" of {free_bytes / 1e9:.1f}" if free_bytes else ""
    st.markdown(
        f"#### {estimate['peak_bytes'] / 1e9:.1f}{room} GB :small[:gray[peak in the "
        f"{escape_markdown(estimate['peak_phase'])} phase, {basis}]]"
    )
    st.plotly_chart(
        bar(estimate, view), key=f"new.forecast.{place}", theme=None, config=CONFIG,
        alt="Peak memory by part, compared with free memory",
    )  # fmt: skip
    st.markdown(legend(estimate))
    if estimate["fits"] is False:
        st.warning(
            'This run will not fit. Press "Check settings" to see the smallest change that does.'
        )
    elif estimate.get("trace_error"):
        st.warning("Whether it fits is not known: this model's step cannot be traced.")


LEGEND = ("blue", "orange", "violet", "green", "red", "gray")  # as the bar, in the theme's hues


def legend(estimate: dict[str, Any]) -> str:
    """The parts of the bar with their GB, as Markdown."""
    return " \u2003".join(
        f":{colour}[●]\u00a0{memory_charts.TITLES[part]} ".replace(" ", "\u00a0")
        + f"{estimate['at_peak'].get(part, 0) / 1e9:.2f}"
        for colour, part in zip(LEGEND, memory_charts.PARTS, strict=True)
        if estimate["at_peak"].get(part, 0) >= 5e6
    )


def _time(estimate: dict[str, Any]) -> None:
    """How long it takes, what for, and the energy and disk that it takes."""
    pace = estimate["pace"]
    seconds = pace["seconds"] + pace["evaluating_s"]
    grid = st.grid(3, min_column_width=110)
    grid.metric("Training time", formatting.duration(seconds))
    grid.metric("Tokens", f"{pace['tokens']:,}")
    grid.metric("Disk", formatting.size(estimate["disk"]["total"]))
    steps = "1 step" if pace["steps"] == 1 else f"{pace['steps']:,} steps"
    energy = f" · {pace['energy_wh']:,.1f} Wh" if pace["energy_wh"] else ""
    basis = (
        "from finished runs on this machine"
        if pace["is_measured"]
        else "rough: no finished run on this machine to calibrate it"
    )
    st.caption(f"{steps}{energy} · {basis}")


def bar(estimate: dict[str, Any], view: View) -> go.Figure:
    """The parts at the peak as one stacked bar; the line is what is free."""
    chart = figure(view, x="", y="", height=64)
    colours = (*view.colours[:5], memory_charts.GREY)
    for i, part in enumerate(memory_charts.PARTS):
        chart.add_trace(
            go.Bar(
                x=[estimate["at_peak"].get(part, 0) / 1e9],
                y=[""],
                name=memory_charts.TITLES[part],
                orientation="h",
                marker={"color": colours[i]},
                hovertemplate=f"{memory_charts.TITLES[part]} %{{x:.2f}} GB<extra></extra>",
            )
        )
    free_bytes = estimate.get("device_bytes")
    if free_bytes and free_bytes < 2 * estimate["peak_bytes"]:
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
