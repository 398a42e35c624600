"""The bar at the bottom of Runs: what can be done with the selected runs, one or many."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from lab import formatting, paths
from lab.chat.conversations import MAX_MODELS
from lab.errors import LabError, refusal_of
from lab.paths import RunDir
from lab.runs import actions, index
from lab.runs.index import RunSummary
from lab.runs.outcomes import outcome
from lab.ui import compare_runs, end_card, links
from lab.ui.markdown_safety import escape_markdown, run_action
from lab.ui.runs_view import folder

FAILURES, NOTES = "runs.failures", "runs.notes"


def outcome_of_last_action() -> None:
    """What the last action could not do, run by run, the others it has done; and what is to be
    known of those."""
    for failure in st.session_state.pop(FAILURES, []):
        st.error(failure, icon=":material/error:")
    for note in st.session_state.pop(NOTES, []):
        st.info(note, icon=":material/info:")


def show(entries: list[RunSummary]) -> None:
    """Buttons for the selected runs; nothing without a selection."""
    if not entries:
        return
    active = [entry for entry in entries if entry.status.is_active]
    with st.bottom, st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{len(entries)} selected**", width="content")
        if len(entries) == 1:
            if st.button("Open", icon=":material/monitoring:", type="primary", key="runs.open"):
                links.open_run(entries[0].id)
        elif st.button(
            "Compare", icon=":material/compare_arrows:", type="primary", key="runs.compare",
            disabled=len(entries) > compare_runs.MAX_RUNS,
            help=f"The verdict, curves and figures side by side; up to {compare_runs.MAX_RUNS}.",
        ):  # fmt: skip
            links.open_comparison([entry.id for entry in entries])
        _chat(entries)
        if len(entries) == 1:
            _only(entries[0])
        with st.popover("Tag", icon=":material/label:", key="runs.tag"):
            _tag(entries)
        is_archived = all(entry.is_archived for entry in entries)
        if st.button(
            "Unarchive" if is_archived else "Archive", icon=":material/archive:",
            key="runs.archive",
        ):  # fmt: skip
            _each("Saving", entries, lambda run, _: index.update_labels(
                run, archived=not is_archived
            ))  # fmt: skip
        with st.popover(
            "Delete", icon=":material/delete:", key="runs.delete", disabled=bool(active),
            help=f"Stop {_name(active[0])} first." if active else None,
        ):  # fmt: skip
            _delete(entries)


def _name(entry: RunSummary) -> str:
    """As Markdown, for tooltips."""
    return escape_markdown(entry.name or entry.id)


def _chat(entries: list[RunSummary]) -> None:
    """All of them beside their base, where there is something to talk to."""
    bases = list(dict.fromkeys(f"base:{entry.model}" for entry in entries))
    models = [*bases, *(f"run:{entry.id}" for entry in entries)]
    missing = [entry for entry in entries if not folder(entry).artifact.is_dir()]
    reason = None
    if missing:
        reason = f"{_name(missing[0])} has no trained model yet."
    elif len(models) > MAX_MODELS:
        reason = (
            f"{formatting.quantity(len(models), 'model')} with the base; the chat takes "
            f"{MAX_MODELS} at most."
        )
    if st.button(
        "Chat", icon=":material/forum:", key="runs.chat", disabled=reason is not None,
        help=reason or "Ask the base and the selected runs the same question.",
    ):  # fmt: skip
        links.switch("chat", {"models": ",".join(models)})


def _only(entry: RunSummary) -> None:
    """What is done with one run at a time."""
    run = folder(entry)
    with st.popover("Download", icon=":material/download:", key="runs.download"):
        end_card.downloads(run)
    st.page_link(
        links.page("new_run"), label="Duplicate", icon=":material/content_copy:",
        query_params={"from": run.id}, width="content",
    )  # fmt: skip
    with st.popover("Rename", icon=":material/edit:", key="runs.rename"):
        name = st.text_input("Name", entry.name, key=f"runs.name.{run.id}")
        notes = st.text_area("Notes", entry.notes, key=f"runs.notes.{run.id}")
        if st.button("Save", key=f"runs.label.{run.id}"):
            run_action(lambda: index.update_labels(run, name=name or "", notes=notes or ""))


def _tag(entries: list[RunSummary]) -> None:
    """Tags for all of the selected runs, or taken from all of them."""
    present = sorted({tag for entry in entries for tag in entry.tags})
    added = st.text_input("Add tags", key="runs.tags.add", placeholder="good, small")
    removed = st.multiselect("Remove tags", present, key="runs.tags.remove") if present else []
    tags = [tag.strip() for tag in (added or "").split(",") if tag.strip()]
    if st.button("Save tags", key="runs.tags.save", disabled=not tags and not removed):
        _each("Saving", entries, lambda run, entry: index.update_labels(
            run,
            tags=", ".join(
                tag for tag in dict.fromkeys([*entry.tags, *tags]) if tag not in removed
            ),
        ))  # fmt: skip


def _delete(entries: list[RunSummary]) -> None:
    size = formatting.size(sum(outcome(folder(entry)).bytes for entry in entries))
    subject = "this run" if len(entries) == 1 else formatting.quantity(len(entries), "run")
    st.markdown(f"Delete {subject} with checkpoints and trained model, {size}?")
    if st.button(f"Delete {subject}", icon=":material/delete:", key="runs.delete.confirm"):
        _each("Deleting", entries, lambda run, _: actions.delete(run))


def _each(
    doing: str, entries: list[RunSummary], action: Callable[[RunDir, RunSummary], object]
) -> None:
    """Do it with every run, whatever the others say, then redraw the page. What an action returns
    as a list are sentences to be shown."""
    progress = st.progress(0.0) if len(entries) > 1 else None
    problems: list[str] = []
    notes: list[str] = []
    for position, entry in enumerate(entries, 1):
        if progress is not None:
            progress.progress(position / len(entries), f"{doing} {position} of {len(entries)}")
        try:
            sentences = action(paths.run_dir(entry.id), entry)
            if isinstance(sentences, list):
                notes += map(escape_markdown, sentences)
        except (LabError, OSError) as error:
            problems.append(escape_markdown(f"{entry.name or entry.id}: {refusal_of(error)}"))
    st.session_state[FAILURES], st.session_state[NOTES] = problems, notes
    st.rerun()
