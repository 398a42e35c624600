"""The parts of the Runs page."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pandas as pd
import streamlit as st

from lab import formatting, paths
from lab.paths import RunDir
from lab.runs import index, record_reader
from lab.runs.index import RunSummary
from lab.runs.outcomes import Outcome, outcome
from lab.ui import colours, titles
from lab.ui.chart_style import is_dark
from lab.ui.markdown_safety import escape_lines, escape_markdown, plain

NOTHING = "–"


def search(entries: list[RunSummary]) -> list[RunSummary]:
    """The runs that match what was typed and the states chosen."""
    states = sorted({entry.status.state for entry in entries})
    with st.container(horizontal=True, vertical_alignment="bottom"):
        query = st.text_input(
            "Search", key="runs.search", placeholder="name, method, model, dataset, tag or ID",
            icon=":material/search:", persist_state="session", live=True,
        )  # fmt: skip
        shows_archived = st.toggle("Show archived", key="runs.archived")
        chosen = st.pills("State", states, selection_mode="multi", key="runs.states")
    parts = (query or "").lower().split()
    return [
        entry
        for entry in entries
        if entry.is_archived == shows_archived
        and all(part in _haystack(entry) for part in parts)
        and (not chosen or entry.status.state in chosen)
    ]


def _haystack(entry: RunSummary) -> str:
    """What is typed may be part of a title as the table shows it, or of what the run holds."""
    fields = (entry.name, entry.method, entry.model, entry.dataset, entry.id, *entry.tags)
    shown = (
        titles.method(entry.method_options), titles.model(entry.model),
        titles.dataset(entry.dataset),
    )  # fmt: skip
    return " ".join((*fields, *shown, entry.notes)).lower()


def folder(entry: RunSummary) -> RunDir:
    """Of a run that was in the list; it may have been deleted in another tab."""
    return RunDir(paths.runs() / entry.id)


def rows(entries: list[RunSummary], outcomes: list[Outcome]) -> pd.DataFrame:
    """What the table shows. Figures are numbers, so that a click on a header sorts by them;
    nothing is NaN there, and "–" in a column of text."""
    summaries = [entry.summary for entry in entries]
    tags = [plain(", ".join(entry.tags)) for entry in entries]
    columns: dict[str, list[Any] | pd.Series] = {
        " ": ["●"] * len(entries),
        "Name": [plain(entry.name or titles.method(entry.method_options)) for entry in entries],
        "State": [_state(entry) for entry in entries],
        "Eval loss": _numbers([outcome.loss for outcome in outcomes]),
        "To base": _numbers([outcome.difference for outcome in outcomes]),
        "Method": [plain(titles.method(entry.method_options)) or NOTHING for entry in entries],
        "Model": [titles.model(entry.model) or NOTHING for entry in entries],
        "Dataset": [titles.dataset(entry.dataset) or NOTHING for entry in entries],
        "Training (min)": _numbers([summary.seconds for summary in summaries]) / 60,
        "Peak (GB)": _numbers([summary.peak_bytes for summary in summaries]) / 1e9,
        "Size (MB)": _numbers([outcome.bytes for outcome in outcomes]) / 1e6,
        "Created": [pd.Timestamp(entry.created, unit="s", tz="UTC") for entry in entries],
        "Steps": _numbers([summary.step for summary in summaries]),
        "Tokens": _numbers([summary.tokens for summary in summaries]),
        **({"Tags": tags} if any(tags) else {}),
        "ID": [entry.id for entry in entries],
    }
    return pd.DataFrame(columns)


def _state(entry: RunSummary) -> str:
    """ "training 36 %" while it runs."""
    state = entry.status.state
    return (
        f"{state} {formatting.percent(entry.status.fraction)}" if entry.status.is_active else state
    )


def _numbers(values: list[Any]) -> pd.Series:
    return pd.Series([None if value is None else float(value) for value in values], dtype="float64")


def table(entries: list[RunSummary]) -> list[RunSummary]:
    """The list; the runs of the selected rows."""
    if not entries:
        st.caption("No matching runs.")
        return []
    # a line of its own: the toolbar of the table lies over what stands above it
    st.caption(formatting.quantity(len(entries), "run"))
    outcomes = [outcome(folder(entry)) for entry in entries]
    frame = rows(entries, outcomes)
    inks = [f"color: {colours.hex_of(entry.colour, is_dark())}" for entry in entries]
    event = st.dataframe(
        frame.style.apply(lambda _: inks, subset=[" "]),
        hide_index=True,
        # another list is another table: a selected row never slides to a neighbour
        key=f"runs.table.{hash(tuple(frame['ID'])):x}",
        on_select="rerun",
        selection_mode="multi-row",
        placeholder=NOTHING,
        height=min(38 * (len(entries) + 1) + 4, 520),
        column_config={
            " ": st.column_config.TextColumn(width=36, help="The run's colour on every page."),
            "Eval loss": st.column_config.NumberColumn(
                format="%.3f", help="Newest evaluation loss, in nats per token: lower is better."
            ),
            "To base": st.column_config.NumberColumn(
                format="%+.3f", help="Evaluation loss less the base model's: below 0 is better."
            ),
            "Training (min)": st.column_config.NumberColumn(format="%.1f"),
            "Peak (GB)": st.column_config.NumberColumn(
                format="%.2f", help="Peak memory of the training process."
            ),
            "Size (MB)": st.column_config.NumberColumn(
                format="%.1f", help="On disk, with checkpoints and records."
            ),
            "Created": st.column_config.DatetimeColumn(format="distance"),
            "Steps": st.column_config.NumberColumn(format="localized"),
            "Tokens": st.column_config.NumberColumn(format="localized"),
        },
        alt="All runs",
    )
    return [entries[row] for row in event["selection"]["rows"] if row < len(entries)]


def details(entry: RunSummary) -> None:
    """Of the one run that is selected: what it takes on disk, its notes, why it failed."""
    run = folder(entry)
    parts = [f"{kind} {formatting.size(size)}" for kind, size in index.disk(run).items() if size]
    st.caption(f"{escape_markdown(run.id)} · on disk: {', '.join(parts)}")
    if entry.notes:
        st.markdown(escape_lines(entry.notes))
    if entry.status.message:
        st.caption(escape_lines(f"{entry.status.message} {entry.status.hint}"))


def figures_csv(run: RunDir) -> str:
    """Training and evaluation records as one table, a line each."""
    records = record_reader.metrics(run, "train") + record_reader.metrics(run, "eval")
    records.sort(key=lambda record: (record["step"], record["kind"]))
    columns = list(dict.fromkeys(key for record in records for key in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="")
    writer.writeheader()
    writer.writerows(
        {
            key: value if isinstance(value, (int, float, str)) else json.dumps(value)
            for key, value in record.items()
        }
        for record in records
    )
    return out.getvalue()
