"""One way to choose a run: a button with its name, and behind it the others with a search.

No list of Streamlit's: it tells choices apart by their labels alone, and what a run is called here
changes with its state, its loss and its age. A click would then choose what is not there any more.
"""

from __future__ import annotations

import streamlit as st

from lab import formatting, paths
from lab.errors import LabError
from lab.runs import index
from lab.runs.index import RunSummary
from lab.runs.outcomes import outcome
from lab.ui import colours, titles
from lab.ui.markdown_safety import escape_markdown, plain

MAX_LISTED = 12
GROUPS = {"active": "Training", "queued": "Waiting", "ended": "Ended"}


def stage(entry: RunSummary) -> str:
    """queued, active or ended: what can be done differs between them, and only between them."""
    if entry.status.state == "queued":
        return "queued"
    return "active" if entry.status.is_active else "ended"


def short_title(run_id: str) -> str:
    """ "wren lora · LoRA r16 · k3f9", as plain text that stays as it is while the run goes on."""
    try:
        entry = index.entry(paths.run_dir(run_id))
    except LabError:
        return run_id
    method = titles.method(entry.method_options)
    return str(plain(f"{entry.name or run_id} · {method} · {run_id[-4:]}"))


def named(entry: RunSummary) -> str:
    """ "● wren lora · LoRA r16" in Markdown."""
    name = escape_markdown(f"{entry.name or entry.id} · {titles.method(entry.method_options)}")
    return f"{colours.dot(entry.colour)} {name}"


def facts(entry: RunSummary) -> str:
    """ "done · 2.41 · 14 min ago"."""
    loss = outcome(paths.run_dir(entry.id)).loss
    parts = [entry.status.state, f"{loss:.2f}" if loss is not None else ""]
    return " · ".join(part for part in [*parts, formatting.when(entry.created)] if part)


def choose(ids: list[str], chosen: str, key: str) -> None:
    """The button of the run `chosen`. A click on one of `ids` makes the address name it as `run`;
    those that train come first, then those that wait, the newest first in each."""
    entries = [index.entry(paths.run_dir(run_id)) for run_id in ids]
    current = next(entry for entry in entries if entry.id == chosen)
    # with a key for each run: another one is another popover, and that is closed
    with st.popover(named(current), key=f"{key}.{chosen}", help="Choose another run"):
        words = st.text_input(
            "Search", key=f"{key}.search.{chosen}", icon=":material/search:",
            placeholder="name, method, state, model, dataset", label_visibility="collapsed",
        )  # fmt: skip
        matches = [entry for entry in entries if _matches(entry, words or "")]
        matches.sort(key=lambda entry: list(GROUPS).index(stage(entry)))
        for group, title in GROUPS.items():
            listed = [entry for entry in matches[:MAX_LISTED] if stage(entry) == group]
            if listed:
                st.caption(title)
            for entry in listed:
                st.button(
                    f"{named(entry)} :gray[· {escape_markdown(facts(entry))}]",
                    key=f"{key}.pick.{entry.id}", type="tertiary", on_click=_show,
                    args=(entry.id,), icon=":material/check:" if entry is current else None,
                )  # fmt: skip
        if not matches:
            st.caption("No matching runs.")
        elif len(matches) > MAX_LISTED:
            st.caption(f"{len(matches) - MAX_LISTED} more: search for them.")


def _show(run_id: str) -> None:
    st.query_params["run"] = run_id


def _matches(entry: RunSummary, words: str) -> bool:
    method, model = titles.method(entry.method_options), titles.model(entry.model)
    parts = (entry.name, entry.id, method, entry.status.state, model, *entry.tags)
    text = f"{' '.join(parts)} {titles.dataset(entry.dataset)}".lower()
    return all(word in text for word in words.lower().split())
