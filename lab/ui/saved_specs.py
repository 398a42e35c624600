"""Load and Save of New run: presets of one's own, the settings of a run, a spec as JSON."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lab import json_text, presets
from lab.errors import LabError, Problem
from lab.runs import index
from lab.spec import MAX_SPEC_BYTES, RunSpec
from lab.ui import form, form_problems, new_run_view
from lab.ui.markdown_safety import escape_markdown, plain, tell

RECENT = 30  # runs whose settings can be loaded


def menus(row: DeltaGenerator) -> None:
    with row.popover("Load", icon=":material/folder_open:", key="new.load"):
        _load()
    with row.popover("Save", icon=":material/bookmark_add:", key="new.save"):
        _save()


def _load() -> None:
    saved = presets.saved()
    runs = {entry.id: str(plain(entry.name or entry.id)) for entry in index.entries()[:RECENT]}
    options = [f"preset:{name}" for name in saved] + [f"run:{run_id}" for run_id in runs]

    def label(option: str) -> str:
        kind, _, name = option.partition(":")
        return f"Preset: {plain(saved[name])}" if kind == "preset" else f"Run: {runs[name]}"

    st.selectbox(
        "One of your presets, or the settings of a run", options, index=None, key="new.load.which",
        format_func=label, placeholder="Choose …", on_change=_load_chosen, persist_state="session",
    )  # fmt: skip
    uploaded = st.file_uploader("A spec (JSON)", type=["json"], key="new.load.file")
    if uploaded is not None and st.session_state.get("new.load.seen") != uploaded.file_id:
        st.session_state["new.load.seen"] = uploaded.file_id
        try:
            _fill(_parse(uploaded.getvalue()))
        except LabError as error:
            tell(error)
            return
        st.rerun()


def _load_chosen() -> None:
    kind, _, name = str(st.session_state["new.load.which"] or "").partition(":")
    st.session_state["new.load.which"] = None
    if kind == "run":
        new_run_view.fill_from(name, trains_on=False)
    elif kind == "preset":
        try:
            _fill(presets.load_saved(name))
        except LabError as error:
            st.toast(escape_markdown(str(error)), icon=":material/error:")


def _parse(content: bytes) -> dict[str, Any]:
    """The JSON of a spec. Raises LabError."""
    try:
        if len(content) > MAX_SPEC_BYTES:
            raise LabError("The file is too large for a spec.", "A spec has a few kilobytes.")
        value = json_text.parse(content)
    except json_text.BadJson as error:
        raise LabError(f"The file is not valid JSON: {error}.", "Save it again.") from None
    if not isinstance(value, dict):
        raise LabError("The file is not a JSON object.", "A spec is a JSON object.")
    return value


def _fill(value: dict[str, Any]) -> None:
    """The form with a spec; what it cannot hold is said, the rest is taken over."""
    problems: list[Problem] = []
    spec = RunSpec.parse(value, problems)
    form.load(spec)
    st.session_state["new.preset"] = None
    if problems:
        sentences = "; ".join(form_problems.sentence(p.field, p.message) for p in problems[:5])
        st.toast(f"Not taken over: {sentences}", icon=":material/warning:", duration="long")


def _save() -> None:
    title = st.text_input("Title of the preset", key="new.save.title", placeholder="my tickets")
    if st.button("Save as preset", key="new.save.go", disabled=not (title or "").strip()):
        try:
            presets.save(str(title), form.value())
        except LabError as error:
            tell(error)
        else:
            st.toast(f"Saved as {escape_markdown(str(title).strip())}. It is under Load.")
    spec = {key: value for key, value in form.value().items() if value != ""}
    st.download_button(
        "Download the spec (JSON)", json.dumps(spec, indent=1), file_name="spec.json",
        mime="application/json", key="new.save.json", on_click="ignore",
    )  # fmt: skip
