"""Bring in a run that was exported elsewhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import streamlit as st

from lab import paths
from lab.runs import export_import
from lab.ui import links
from lab.ui.markdown_safety import user_errors


def show() -> None:
    with st.popover("Import a run", icon=":material/upload_file:"):
        st.caption("A file made by `python -m lab export`. No code in it is executed.")
        uploaded = st.file_uploader("Exported run", type="zip", key="runs.import")
        if uploaded is None or not st.button("Import", type="primary", key="runs.import.go"):
            return
        with user_errors():
            run = _import(uploaded)
        links.open_run(run.id)


def _import(uploaded: Any) -> paths.RunDir:
    """The run of an uploaded file, by way of a file beside the runs."""
    folder = paths.make_folder(paths.home() / "uploads")
    with tempfile.NamedTemporaryFile(dir=folder, prefix="run-", suffix=".zip") as file:
        while chunk := uploaded.read(1 << 20):
            file.write(chunk)
        file.flush()
        return export_import.import_run(Path(file.name))
