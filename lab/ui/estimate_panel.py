"""The memory of the run that the form describes, while it is being filled in."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import OrderedDict
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from lab import formatting
from lab.errors import LabError, SpecError
from lab.preflight.client import Abandoned, planner
from lab.ui import hub_fields, memory_charts
from lab.ui.charts import CONFIG, View, figure
from lab.ui.markdown_safety import escape_markdown
from lab.ui.monitor_view import is_dark
from lab.ui.waiting import Watched

KEPT = 32
STILL_S = 1.5  # if the form is not polled for this long, its values have changed


class Forecast(Watched):
    """The outline of the step, then the traced step, for one state of the form."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.found: dict[str, Any] | None = None
        self.problem = ""
        self.is_complete = self.was_left = False
        self.seen_at = time.monotonic()
        threading.Thread(target=self._ask, name="forecast", daemon=True).start()

    def _ask(self) -> None:
        try:
            with self.asking.active():
                self._ask_in_turn()
        except SpecError:  # each stands beside its field when the form is checked
            self.problem = "The memory is predicted when the form has no problems."
        except Abandoned:
            self.was_left = True
            return
        except (LabError, RuntimeError) as error:
            self.problem = str(error)
        self.is_complete = not self.was_left

    def _ask_in_turn(self) -> None:
        self.found = planner.estimate(self.spec, shadow=False)
        # a processor's figure is a bound, and runs are admitted with that of the outline
        if not self.found["is_bound"]:
            time.sleep(STILL_S)
            # a little less: the look that began this may be noted after it has begun
            if time.monotonic() - self.seen_at > 0.8 * STILL_S:
                self.was_left = True  # asked again if somebody comes back to it
                return
            self.found = planner.estimate(self.spec)
        # how long it takes: reads some of the data, so it comes last
        self.found = planner.estimate(self.spec, shadow=not self.found["is_bound"], time=True)


_kept: OrderedDict[str, Forecast] = OrderedDict()
_lock = threading.Lock()


def forecast(spec: dict[str, Any]) -> Forecast:
    """What is known of the memory of `spec` by now; asked at the first look."""
    key = hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest()
    with _lock:
        found = _kept.pop(key, None)
        if found is None or found.was_left or found.asking.is_cancelled:
            found = Forecast(spec)
        _kept[key] = found
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
        found.seen_at = time.monotonic()
        return found


def panel(spec: dict[str, Any]) -> None:
    """The predicted memory of `spec`, refreshed until the prediction is complete."""
    now = forecast(spec)
    now.look("forecast")
    was_complete = now.is_complete

    @st.fragment(run_every=None if was_complete else 1.0)
    def answer() -> None:
        now = forecast(spec)
        now.look("forecast")
        show(now, View(dark=is_dark()))
        if now.is_complete and not was_complete:
            st.rerun()

    answer()


def show(now: Forecast, view: View) -> None:
    """One bar of what the peak is made of, against what the device has, and a sentence."""
    if now.found is None:
        words = escape_markdown(now.problem) if now.is_complete else "Looking at the model …"
        st.caption(f":material/memory_alt: {words}")
        return
    found = now.found
    how = formatting.estimated_by(found["source"])
    if found["source"] == "outline":
        how = "a bound" if found["is_bound"] else "about, the step is being traced …"
    room = found.get("device_bytes")
    free = f", {formatting.size(room)} free" if room else ""
    st.markdown(
        f":material/memory_alt: **{formatting.size(found['peak_bytes'])}** of memory at the peak "
        f"({escape_markdown(found['peak_phase'])}; {how}){free}"
    )
    if words := hub_fields.download_in_words(found.get("download")):
        st.markdown(words)
    if found.get("pace"):
        st.markdown(f":material/timer: {time_in_words(found)}")
    st.plotly_chart(
        bar(found, view), key="new.forecast", theme=None, config=CONFIG,
        alt="Memory at the peak by part, against the device's free memory",
    )  # fmt: skip
    if found["fits"] is False:
        st.warning("It will not fit as it is. Start says the smallest change that does.")
    elif found.get("trace_error"):
        st.warning("Whether it fits is not known: this model's step cannot be traced.")


def time_in_words(found: dict[str, Any]) -> str:
    """The predicted time, what it is for, and the energy and disk that it takes."""
    pace = found["pace"]
    seconds = pace["seconds"] + pace["evaluating_s"]
    steps = "1 step" if pace["steps"] == 1 else f"{pace['steps']:,} steps"
    said = f"about **{formatting.duration(seconds)}** for {steps}, {pace['tokens']:,} tokens"
    if pace["energy_wh"]:
        said += f", {pace['energy_wh']:,.1f} Wh"
    said += f", up to {formatting.size(found['disk']['total'])} of disk"
    return said if pace["is_measured"] else f"{said} (rough, until a run has finished here)"


def bar(found: dict[str, Any], view: View) -> go.Figure:
    """The parts at the peak as one stacked bar; the line is what is free."""
    made = figure(view, x="", y="", height=96)
    colours = (*view.colours[:5], memory_charts.GREY)
    for place, part in enumerate(memory_charts.PARTS):
        made.add_trace(
            go.Bar(
                x=[found["at_peak"].get(part, 0) / 1e9],
                y=[""],
                name=memory_charts.TITLES[part],
                orientation="h",
                marker={"color": colours[place]},
                hovertemplate=f"{memory_charts.TITLES[part]} %{{x:.2f}} GB<extra></extra>",
            )
        )
    room = found.get("device_bytes")
    if room and room < 8 * found["peak_bytes"]:
        made.add_vline(x=room / 1e9, line={"color": view.colours[3], "width": 2, "dash": "dash"})
    made.update_layout(
        barmode="stack", showlegend=False, hovermode="closest", bargap=0.2,
        margin={"l": 0, "r": 8, "t": 4, "b": 4},
    )  # fmt: skip
    made.update_xaxes(ticksuffix=" GB", rangemode="tozero")
    made.update_yaxes(showticklabels=False, showgrid=False)
    return made
