"""Watch one run live; the URL names it, so that a reload or another browser finds it again."""

import streamlit as st

from lab.ui import (
    checkpoint_panel,
    end_card,
    forgotten,
    monitor_charts,
    monitor_details,
    monitor_view,
    out_of_memory_panel,
)
from lab.ui.fragments import fragment
from lab.ui.frame import head

actions = head("Monitor")
run = monitor_view.choose()
with actions:
    monitor_view.pick(run)
    monitor_view.actions_while_active(run)

stage = monitor_view.stage(run)
polls = stage != "ended"
measures = checkpoint_panel.is_measuring(run)
had_curves = monitor_charts.has_curves(run)


@fragment(run_every=1.0 if polls else None)
def now() -> None:
    monitor_view.state(run)
    if monitor_view.stage(run) != stage or monitor_charts.has_curves(run) != had_curves:
        st.rerun()  # the whole page: its buttons follow, and it stops polling at the end


@fragment(run_every=monitor_charts.pace(run) if polls else 1.0 if measures else None)
def loss() -> None:
    monitor_charts.show_loss(run, view)
    if measures and not checkpoint_panel.is_measuring(run):
        st.rerun()  # it is known


@fragment(run_every=monitor_charts.pace(run) if polls else None)
def others() -> None:
    monitor_charts.show_others(run, view)
    forgotten.show(run)


@fragment(run_every=3.0 if polls else None)
def samples() -> None:
    monitor_details.samples(run)


@fragment(run_every=3.0 if polls or measures else None)
def details() -> None:
    monitor_details.warnings(run)
    monitor_details.tabs(run)


now()
monitor_view.buttons(run)
out_of_memory_panel.show(run)
if had_curves:
    has_samples = polls or bool(end_card.samples(run))  # else a third of the page would be empty
    frame = st.container(key="stack-monitor")  # below each other in a narrow window
    wide, narrow = frame.columns([2, 1], gap="medium") if has_samples else (frame, None)
    with wide.container(border=True):
        view = monitor_charts.controls(run)
        loss()
    if narrow is not None:
        with narrow:
            samples()
    others()
details()
