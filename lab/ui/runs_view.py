"""The parts of the Runs page."""

from __future__ import annotations

import csv
import io
import json

import pandas as pd
import streamlit as st

from lab import formatting, paths
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions, index, record_reader
from lab.runs.index import RunSummary
from lab.ui import cards, links
from lab.ui.markdown_safety import escape_lines, escape_markdown, plain, run_action


def search(entries: list[RunSummary]) -> list[RunSummary]:
    """The runs that match what was typed and the states chosen."""
    states = sorted({entry.status.state for entry in entries})
    with st.container(horizontal=True, vertical_alignment="bottom"):
        query = st.text_input(
            "Search", key="runs.search", placeholder="name, method, model, dataset or id",
            icon=":material/search:", persist_state="session", live=True,
        )  # fmt: skip
        shows_archived = st.toggle("Archived", key="runs.archived")
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
    fields = (entry.name, entry.method, entry.model, entry.dataset, entry.id, *entry.tags)
    fields = (*fields, entry.notes)
    return " ".join(fields).lower()


def table(entries: list[RunSummary]) -> RunDir | None:
    """The list; the run of the selected row."""
    if not entries:
        st.caption("No run matches.")
        return None
    frame = pd.DataFrame(
        {
            "Name": [plain(entry.name or entry.id) for entry in entries],
            "State": [entry.status.state for entry in entries],
            "Progress": [
                1.0 if entry.status.state == "done" else entry.status.fraction for entry in entries
            ],
            "Tags": [plain(", ".join(entry.tags)) for entry in entries],
            "Method": [plain(entry.method) for entry in entries],
            "Steps": [_double(entry.summary.get("step")) for entry in entries],
            "Tokens": [_double(entry.summary.get("tokens")) for entry in entries],
            "Time": [formatting.duration(entry.summary.get("seconds")) for entry in entries],
            "Peak": [formatting.size(entry.summary.get("peak_bytes")) for entry in entries],
            "Started": [pd.Timestamp(entry.created, unit="s", tz="UTC") for entry in entries],
            "Id": [entry.id for entry in entries],
        }
    )
    event = st.dataframe(
        frame,
        hide_index=True,
        # another list is another table: a selected row never slides to a neighbour
        key=f"runs.table.{hash(tuple(frame['Id'])):x}",
        on_select="rerun",
        selection_mode="single-row",
        height=min(38 * (len(entries) + 1) + 4, 520),
        column_config={
            "Progress": st.column_config.ProgressColumn(format="percent", width="small"),
            "Started": st.column_config.DatetimeColumn(format="distance"),
            "Steps": st.column_config.NumberColumn(format="localized"),
            "Tokens": st.column_config.NumberColumn(format="localized"),
        },
        alt="All runs",
    )
    rows = event["selection"]["rows"]
    if not rows or rows[0] >= len(entries):
        return None
    try:
        return paths.run_dir(entries[rows[0]].id)
    except LabError:
        return None  # deleted in another tab


def _double(value: float | None) -> float | None:
    """A figure of a result as a column takes it: an integer of hundreds of digits is left out."""
    return None if value is None else float(value)


def buttons(run: RunDir) -> None:
    """What can be done with one run."""
    entry = index.entry(run)
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{escape_markdown(entry.name or run.id)}**")
            cards.state_badge(entry.status.state)
            st.caption(escape_markdown(run.id))
        parts = [
            f"{kind} {formatting.size(size)}" for kind, size in index.disk(run).items() if size
        ]
        st.caption(f"On disk: {', '.join(parts)}")
        if entry.notes:
            st.markdown(escape_lines(entry.notes))
        if entry.status.message:
            st.caption(escape_lines(f"{entry.status.message} {entry.status.hint}"))
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button(
                "Open", icon=":material/monitoring:", type="primary", key=f"runs.open.{run.id}"
            ):
                links.open_run(run.id)
            st.page_link(
                links.page("new_run"), label="Duplicate into New run",
                icon=":material/content_copy:", query_params={"from": run.id}, width="content",
            )  # fmt: skip
            st.download_button(
                "Figures as CSV", lambda: figures_csv(run), file_name=f"{run.id}.csv",
                mime="text/csv", icon=":material/download:", key=f"runs.csv.{run.id}",
                on_click="ignore",
            )  # fmt: skip
            with st.popover("Name, tags, notes", icon=":material/edit:"):
                _labels(run, entry)
            with st.popover("Delete", icon=":material/delete:", disabled=entry.status.is_active):
                st.markdown("Remove the run with its checkpoints and its result?")
                if st.button("Yes, delete it", type="primary", key=f"runs.delete.{run.id}"):
                    run_action(lambda: actions.delete(run))


def _labels(run: RunDir, entry: RunSummary) -> None:
    """Another name, tags and notes, and whether the run is listed."""
    labels = {
        "name": st.text_input("Name", entry.name, key=f"runs.name.{run.id}"),
        "tags": st.text_input("Tags", ", ".join(entry.tags), key=f"runs.tags.{run.id}"),
        "notes": st.text_area("Notes", entry.notes, key=f"runs.notes.{run.id}"),
        "archived": st.toggle("Archived", entry.is_archived, key=f"runs.archive.{run.id}"),
    }
    if st.button("Save", key=f"runs.label.{run.id}"):
        run_action(
            lambda: index.update_labels(
                run, **{key: "" if text is None else text for key, text in labels.items()}
            )
        )


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
