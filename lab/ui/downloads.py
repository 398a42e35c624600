"""A run as files to take away: its trained model, all of it, its figures."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import streamlit as st

from lab import formatting, methods
from lab.atomic_files import size_of
from lab.paths import RunDir
from lab.runs import export_import
from lab.runs.index import RunSummary
from lab.ui.runs_view import figures_csv


def buttons(run: RunDir, entry: RunSummary) -> None:
    """One for each file that there is; it is packed when the button is pressed."""
    if run.artifact.is_dir():
        size = formatting.size(size_of(run.artifact))
        st.download_button(
            f"Trained model ({size}, ZIP)", lambda: zipped(run.artifact),
            file_name=f"{run.id}-model.zip", mime="application/zip",
            icon=":material/download:", key=f"download.model.{run.id}", on_click="ignore",
            help="The adapter, or all weights after full fine-tuning, as safetensors with the "
            "tokenizer and the chat template: PEFT and Transformers load the folder.",
        )  # fmt: skip
    if entry.status.has_ended and run.result.is_file():
        st.download_button(
            "Whole run (ZIP)", lambda: exported(run), file_name=f"{run.id}.zip",
            mime="application/zip", icon=":material/download:", key=f"download.run.{run.id}",
            on_click="ignore",
            help="Settings, metrics, log and trained model, without checkpoints. *Import a run* "
            "takes it on another machine.",
        )  # fmt: skip
    st.download_button(
        "Metrics (CSV)", lambda: figures_csv(run), file_name=f"{run.id}.csv", mime="text/csv",
        icon=":material/download:", key=f"download.csv.{run.id}", on_click="ignore",
    )  # fmt: skip
    is_mergeable = entry.method in methods.names() and methods.get(entry.method).can_merge
    if run.artifact.is_dir() and is_mergeable:
        st.caption("Merged into the base, as one plain model folder:")
        st.code(f"python -m lab merge {run.id} merged-model", language="bash")


def zipped(folder: Path) -> bytes:
    """The regular files below `folder` as a ZIP archive, under the folder's name; weights are
    stored, because they are noise to a compressor."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    archive.write(path, path.relative_to(folder.parent))
        file.seek(0)
        return file.read()


def exported(run: RunDir) -> bytes:
    """The run as the file that *Import a run* takes. Raises LabError."""
    with tempfile.TemporaryDirectory() as folder:
        return export_import.export(run, Path(folder) / "run.zip").read_bytes()
