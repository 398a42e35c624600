"""The card of a run that has ended: what it has gained, in a figure and in words, and what to do
with the model."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab import formatting
from lab.atomic_files import finite_number, size_of
from lab.paths import RunDir
from lab.runs import index, record_reader
from lab.runs.metric_series import series_of
from lab.runs.result import TrainingSummary
from lab.ui import colours, links, runs_view
from lab.ui import downloads as download_routes
from lab.ui.markdown_safety import escape_lines, escape_markdown


def change_in_words(base: float, last: float) -> str:
    """ "3.59 → 2.82 (−21 %)"; the sign always stands there, per cent are whole from 10 on."""
    change = last / base - 1 if base else 0.0
    return f"{base:.2f} → {last:.2f} ({formatting.signed_percent(change)})"


def show(run: RunDir) -> None:
    """Nothing, unless the run has ended and has trained."""
    entry = index.entry(run)
    series = series_of(run)
    if not entry.status.has_ended or not series.train.length:
        return
    with st.container(border=True):
        st.markdown(f"### {colours.dot(entry.colour)} {_headline(run)}")
        st.caption(_costs(run, entry.summary))
        _answers(run)
        _actions(run, entry)


def _headline(run: RunDir) -> str:
    held_out = series_of(run).evaluation
    base, last = held_out.base, finite_number(held_out.last("eval/loss"))
    if base is None or last is None or not held_out.length:
        loss = finite_number(series_of(run).train.last("train/loss"))
        return "Training loss –" if loss is None else f"Training loss {loss:.2f}"
    headline = f"Evaluation loss {change_in_words(float(base['eval/loss']), last)}"
    values, steps = held_out.get("eval/loss"), held_out.get("step")
    best = int(values.argmin())
    if float(values[best]) < last - 0.005:
        headline += f", best at step {steps[best]:.0f} ({values[best]:.2f})"
    return headline


def _costs(run: RunDir, summary: TrainingSummary) -> str:
    steps, seconds, peak = summary.step, summary.seconds, summary.peak_bytes
    parts = [
        formatting.quantity(steps, "step") if steps else "",
        f"{formatting.duration(seconds)} of training" if seconds else "",
        f"peak {formatting.size(peak)}" if peak else "",
        f"trained model {formatting.size(size_of(run.artifact))}" if run.artifact.is_dir() else "",
    ]
    return " · ".join(part for part in parts if part)


def samples(run: RunDir) -> list[dict[str, Any]]:
    """The answers to the run's own prompt, in order of the steps."""
    return [
        event
        for event in record_reader.events(run, "sample")
        if finite_number(event.get("step")) is not None
    ]


def _answers(run: RunDir) -> None:
    """What the base and the result say to the same prompt, beside each other."""
    answers = samples(run)
    if len(answers) < 2 or answers[0]["step"] != 0:
        return
    st.markdown(f":material/chat: {escape_markdown(str(answers[-1].get('prompt', '')))}")
    grid = st.grid(2, min_column_width=280, gap="small", border=True)
    titles = (f"{colours.BASE_DOT} before training", f"after step {answers[-1]['step']:,}")
    for title, answer in zip(titles, (answers[0], answers[-1]), strict=True):
        with grid.cell():
            st.caption(title)
            st.markdown(escape_lines(str(answer.get("text", ""))) or "*(empty answer)*")


def _actions(run: RunDir, entry: index.RunSummary) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        if run.artifact.is_dir() and st.button(
            "Chat with it beside the base", icon=":material/forum:",
            key="monitor.chat",
            type="primary" if entry.status.state == "done" else "secondary",
        ):  # fmt: skip
            links.switch("chat", {"run": run.id})
        if st.button("Compare", icon=":material/compare_arrows:", key="monitor.compare"):
            links.open_comparison([run.id, *partner(entry)])
        with st.popover("Download", icon=":material/download:", key="monitor.download"):
            downloads(run)
        with st.popover("Train again", icon=":material/replay:", key="monitor.again"):
            st.page_link(
                links.page("new_run"), label="Duplicate", icon=":material/content_copy:",
                query_params={"from": run.id},
            )  # fmt: skip
            if run.artifact.is_dir():
                st.page_link(
                    links.page("new_run"), label="Continue training in a new run",
                    icon=":material/step_into:", query_params={"from": run.id, "on": "1"},
                )  # fmt: skip


def partner(entry: index.RunSummary) -> list[str]:
    """The newest other run of the same model and data, to compare with."""
    return [
        other.id
        for other in index.entries()
        if other.id != entry.id
        and (other.model, other.dataset) == (entry.model, entry.dataset)
        and not other.is_archived
        and other.status.state == "done"
    ][:1]


def downloads(run: RunDir) -> None:
    """The result and the records as files; Results has the other forms of a result."""
    if run.artifact.is_dir():
        size = formatting.size(size_of(run.artifact))
        download_routes.button(
            f"Trained model ({size}, ZIP)", run,
            help="The weights or the adapter as safetensors, with tokenizer and chat template: "
            "from_pretrained and PEFT load the folder.",
        )  # fmt: skip
    download_routes.button(
        "Whole run (ZIP)", run, "run",
        help="Settings, metrics, log and trained model; Runs imports it on another machine.",
    )  # fmt: skip
    st.download_button(
        "Metrics (CSV)", lambda: runs_view.figures_csv(run), file_name=f"{run.id}.csv",
        mime="text/csv", key="download.csv", on_click="ignore",
    )  # fmt: skip
    if run.artifact.is_dir():
        st.page_link(
            links.page("results"), label="Merged, GGUF, Hub …", icon=":material/inventory_2:",
            query_params={"run": run.id},
        )  # fmt: skip
