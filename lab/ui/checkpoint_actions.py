"""The time machine: chat with a checkpoint of a run, or measure it, from its list or its curve."""

from __future__ import annotations

import streamlit as st

from lab import formatting
from lab.atomic_files import number
from lab.evals import checkpoint_loss
from lab.paths import RunDir
from lab.runs import checkpoints, index
from lab.runs.metric_series import series_of
from lab.ui import charts, links
from lab.ui.markdown_safety import escape_markdown, run_action

POINT = "monitor.point"  # (run, step) that was clicked in the curve
LOOK_S = 1.0


def models_of(run: RunDir, step: int) -> list[str]:
    """The names of a chat with the checkpoint beside its base."""
    return [f"base:{index.entry(run).model}", f"run:{run.id}@{step}"]


def buttons(run: RunDir, step: int, where: str) -> None:
    """Chat with it, measure it, and what was measured."""
    if st.button("Chat with it", icon=":material/forum:", key=f"{where}.chat.{run.id}.{step}"):
        links.open_chat(models_of(run, step))
    job = checkpoint_loss.record(run, step)
    if job is not None and job.is_active:
        _watch(run, step)
        return
    if st.button(
        "Measure it", icon=":material/straighten:", key=f"{where}.measure.{run.id}.{step}",
        help="The loss of this checkpoint on the held-out rows of its run, in the background.",
    ):  # fmt: skip
        run_action(lambda: checkpoint_loss.start(run, step))
    if job is not None:
        st.caption(outcome(run, step))


def _watch(run: RunDir, step: int) -> None:
    @st.fragment(run_every=LOOK_S)
    def look() -> None:
        job = checkpoint_loss.record(run, step)
        if job is None or not job.is_active:
            st.rerun()
        else:
            text = f"{job.phase} · {formatting.duration(job.seconds)}"
            st.caption(f":material/progress_activity: {escape_markdown(text)}")

    look()


def outcome(run: RunDir, step: int) -> str:
    """What the last measurement gave, as Markdown."""
    job = checkpoint_loss.record(run, step)
    if job is None:
        return ""
    loss = number(job.result.get("loss"))
    if job.finish == "done" and loss is not None:
        rows, perplexity = job.result.get("rows"), number(job.result.get("perplexity"))
        shown = "–" if perplexity is None else f"{perplexity:,.3g}"
        return escape_markdown(
            f"Measured: loss {loss:.4f} on {rows} held-out rows, perplexity {shown}"
        )
    if job.finish == "interrupted":
        return "The measurement was stopped before its end."
    return f":red[{escape_markdown(f'{job.error} {job.hint}')}]"


def remember(run: RunDir, event: object, by: str) -> None:
    """Keep the step of the point that was clicked in the loss chart."""
    selection = getattr(event, "selection", None) or {}
    points = selection.get("points") if isinstance(selection, dict) else None
    x = number(points[0].get("x")) if points else None
    step = None if x is None else step_at(run, by, float(x))
    if step is not None:
        st.session_state[POINT] = (run.id, step)


def step_at(run: RunDir, by: str, x: float) -> int | None:
    """The training step that stands at `x` of the loss chart, None before the first one."""
    series = series_of(run)
    train = series.train
    if not train.length:
        return None
    scale, _ = charts.x_axis(by, train, series.evaluation)
    positions = train.get(by) / scale
    return int(train.get("step")[int(abs(positions - x).argmin())])


def clicked(run: RunDir) -> None:
    """Below the curve: what can be done with the state of the run at the point clicked last."""
    point = st.session_state.get(POINT)
    steps = [checkpoints.step_of(path) for path in checkpoints.listing(run.checkpoints)]
    if not point or point[0] != run.id:
        if steps:
            st.caption("Click a point of the curve to chat with the model as it was then.")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        if not steps:
            st.caption(f"Step {point[1]:,}: this run has no checkpoint.")
            return
        step = min(steps, key=lambda each: abs(each - point[1]))
        nearest = "" if step == point[1] else f", the nearest checkpoint to step {point[1]:,}"
        st.markdown(f"**Step {step:,}**{nearest}", width="content")
        buttons(run, step, "monitor.point")
