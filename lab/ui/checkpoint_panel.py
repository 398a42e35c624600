"""What can be done with one checkpoint: chat with it, measure it. Below the loss chart for the one
that was clicked, and in the list of checkpoints."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import streamlit as st

from lab.atomic_files import read_object
from lab.evals import checkpoint_loss
from lab.paths import RunDir
from lab.runs import checkpoints, index
from lab.runs.metric_series import series_of
from lab.ui import colours, links
from lab.ui.markdown_safety import escape_markdown, run_action


def clicked(event: Any) -> int | None:
    """The step of the checkpoint that was clicked in the chart, None for any other click."""
    points = event["selection"]["points"] if event else []
    for point in points:
        step = point.get("customdata")
        step = step[0] if isinstance(step, (list, tuple)) and step else step
        if isinstance(step, (int, float)) and not isinstance(step, bool):
            return int(step)
    return None


def show(run: RunDir, step: int) -> None:
    """The checkpoint of a step in one line."""
    if not (run.checkpoints / f"step-{step}").is_dir():
        st.caption(f"The checkpoint of step {step:,} was deleted.")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        dot = colours.dot(index.entry(run).colour)
        st.markdown(f"{dot} **Checkpoint of step {step:,}**{loss_in_words(run, step)}")
        actions(run, step, "clicked")


def loss_in_words(run: RunDir, step: int, last: float | None = None) -> str:
    """ " · evaluation loss 2.41", from the run's own evaluation or a measurement, else the `last`
    one that the checkpoint knows."""
    loss = evaluated(run, step)
    if loss is None:
        loss = checkpoint_loss.measured(run, step).loss
    if loss is None:
        loss = last
    return "" if loss is None else f" · evaluation loss {loss:.3f}"


def evaluated(run: RunDir, step: int) -> float | None:
    """What the run itself measured at that very step."""
    held_out = series_of(run).evaluation
    at = np.flatnonzero(held_out.get("step") == step)
    return float(held_out.get("eval/loss")[at[-1]]) if len(at) else None


def models_of(run: RunDir, step: int | None) -> tuple[str, str]:
    """The base and the weights of a step, as Chat names them; None is the result."""
    model = str((read_object(run.spec) or {}).get("model", ""))
    return f"base:{model}", f"run:{run.id}" + ("" if step is None else f"@{step}")


def actions(run: RunDir, step: int, panel: str) -> None:
    """Chat with step N, next to the base; and, where the run did not evaluate there, Measure it."""
    st.page_link(
        links.page("chat"), label=f"Chat with step {step:,}", icon=":material/forum:",
        query_params={"models": ",".join(models_of(run, step))}, width="content",
    )  # fmt: skip
    if evaluated(run, step) is not None:
        return
    record = checkpoint_loss.measured(run, step)
    if record.state == "measuring":
        st.caption(f":material/progress_activity: measuring, {time.time() - record.since:.0f} s …")
        return
    if record.state == "failed":
        st.caption(f":material/error: {escape_markdown(record.message)}")
    if record.loss is None and st.button(
        "Measure it", icon=":material/straighten:", key=f"measure.{panel}.{run.id}.{step}",
        help="The loss on the held-out examples of this run, in the background.",
    ):  # fmt: skip
        run_action(lambda: checkpoint_loss.start(run, step))


def is_measuring(run: RunDir) -> bool:
    """Whether one of its checkpoints is being measured."""
    steps = map(checkpoints.step_of, checkpoints.listing(run.checkpoints))
    return any(checkpoint_loss.measured(run, step).state == "measuring" for step in steps)
