"""The time machine of Compare: a click on the curves, and the checkpoints to chat with there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from lab.chat.conversations import MAX_MODELS
from lab.compare.contestants import Contestant
from lab.compare.curves import run_curve
from lab.compare.run_figures import RunFigures
from lab.runs import checkpoints
from lab.ui import checkpoint_panel, links
from lab.ui.compare_runs import name_of, plain_name


@dataclass(frozen=True)
class NearestCheckpoint:
    """`clicked`: the step that was clicked; `step`: of the nearest weights that are there, which
    are the result if `is_result`."""

    clicked: int
    step: int
    is_result: bool

    def in_words(self) -> str:
        """ "step 24, the nearest kept to 30"."""
        name = f"the result, step {self.step:,}" if self.is_result else f"step {self.step:,}"
        return (
            name
            if self.step == self.clicked
            else f"{name}, the checkpoint nearest to {self.clicked:,}"
        )


def clicked_at(event: Any) -> float | None:
    """Where on the axis a person has clicked, as it is drawn."""
    points = event["selection"]["points"] if event else []
    places = [point.get("x") for point in points if isinstance(point.get("x"), (int, float))]
    return float(places[0]) if places else None


def step_at(run: RunFigures, by: str, at: float, usd: float) -> int:
    """The step nearest to `at` of the axis; the last one beyond the run's end."""
    if by == "step":
        return round(min(max(at, 0.0), float(run.steps)))
    x, _ = run_curve(run, "train/loss", by, usd)
    steps, _ = run_curve(run, "train/loss", "step")
    if not len(x) or len(x) != len(steps):
        return run.steps
    return round(float(np.interp(at, np.append(0.0, x), np.append(0.0, steps))))


def nearest(run: RunFigures, clicked: int) -> NearestCheckpoint | None:
    """None where neither a checkpoint nor a result is there."""
    available = {
        checkpoints.step_of(path): False for path in checkpoints.listing(run.run.checkpoints)
    }
    if run.run.artifact.is_dir():
        available[run.steps] = True
    if not available:
        return None
    step = min(available, key=lambda step: (abs(step - clicked), -step))
    return NearestCheckpoint(clicked, step, available[step])


def show(shown: list[Contestant], by: str, at: float, usd: float) -> None:
    """A link for each run at `at` of the axis, and one to all of them side by side."""
    models: list[str] = []
    with st.container(horizontal=True, vertical_alignment="center", key="compare-point"):
        st.markdown("Chat with", width="content")
        for each in shown:
            run = each.first
            there = nearest(run, step_at(run, by, at, usd))
            if there is None:
                st.caption(f"{name_of(each)}: no checkpoint left.", width="content")
                continue
            seed = f", seed {run.seed}" if len(each.runs) > 1 else ""
            step = None if there.is_result else there.step
            base, model = checkpoint_panel.models_of(run.run, step)
            models += [name for name in (base, model) if name not in models]
            st.page_link(
                links.page("chat"), icon=":material/forum:", width="content",
                label=f"{plain_name(each)}{seed}: {there.in_words()}",
                query_params={"models": f"{base},{model}"},
            )  # fmt: skip
        if 2 < len(models) <= MAX_MODELS:
            st.page_link(
                links.page("chat"), label="All of them side by side", icon=":material/compare:",
                query_params={"models": ",".join(models)}, width="content",
            )  # fmt: skip
