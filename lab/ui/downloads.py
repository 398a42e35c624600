"""Trained models and runs as ZIP files, sent from the disk: a model of gigabytes is never held in
the web server's memory.

The archive is written into an open file without a name under LAB_HOME, which is gone when it has
been sent, when the browser goes away, or when the server ends. The gate stands before these routes
as before all others.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import streamlit as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from streamlit import config

from lab import paths
from lab.errors import LabError, of_the_disk
from lab.paths import RunDir
from lab.runs import export_import

CHUNK = 1 << 20
KINDS = ("model", "run")


def button(run: RunDir, kind: str, label: str, help: str) -> None:
    """A link to the archive; the browser shows its progress."""
    base = (config.get_option("server.baseUrlPath") or "").strip("/")
    prefix = f"/{base}" if base else ""
    st.link_button(
        label, f"{prefix}/download/{kind}/{run.id}", icon=":material/download:", help=help
    )


def _answer(request: Request) -> Response:
    """Runs in a thread of its own. What is refused is said as text."""
    kind, run_id = request.path_params["kind"], request.path_params["run"]
    try:
        run = paths.run_dir(run_id)
        if kind not in KINDS or (kind == "model" and not run.artifact.is_dir()):
            raise LabError(f"{run.id} has no such file.", "Go back to its Monitor.")
        file = _archive(run, kind)
    except LabError as error:
        return PlainTextResponse(f"{error.message} {error.hint}", 404)
    except OSError as error:
        refusal = of_the_disk(error)
        if refusal is None:
            raise
        return PlainTextResponse(f"{refusal.message} {refusal.hint}", 507)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    name = f"{run.id}-model.zip" if kind == "model" else f"{run.id}.zip"
    return StreamingResponse(
        _blocks(file),
        media_type="application/zip",
        headers={
            "Content-Length": str(size),
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "no-store",
        },
    )


def _archive(run: RunDir, kind: str) -> IO[bytes]:
    """The archive as an open file without a name. Raises LabError and OSError."""
    folder = paths.make_folder(paths.home() / "downloads")
    if kind == "model":
        file: IO[bytes] = tempfile.TemporaryFile(dir=folder)
        try:
            zip_folder(run.artifact, file)
        except BaseException:
            file.close()
            raise
        return file
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        return export_import.export(run, Path(aside) / "run.zip").open("rb")


def zip_folder(folder: Path, file: IO[bytes]) -> None:
    """The regular files of a folder, its name before theirs; weights are noise to a compressor."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.write(path, path.relative_to(folder.parent))


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while block := file.read(CHUNK):
            yield block


ROUTES = (
    Route("/download/{kind}/{run}", _answer, methods=["GET"]),
    # behind a server.baseUrlPath
    Route("/{base:path}/download/{kind}/{run}", _answer, methods=["GET"]),
)
