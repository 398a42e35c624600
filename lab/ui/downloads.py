"""Downloads as routes of the web server, behind its gate: files go out in pieces as they are read,
so that a model of any size takes no memory.

GET /download/RUN/result            the trained model as a ZIP
GET /download/RUN/run               the whole run, as `python -m lab export` writes it
GET /download/RUN/KIND-TYPE         an export: a merged folder as a ZIP, a GGUF file as it is
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import streamlit as st
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from lab import paths
from lab.atomic_files import remove_tree
from lab.errors import LabError
from lab.export import exports
from lab.paths import RunDir
from lab.runs import export_import

CHUNK = 1 << 20
LARGE = 1 << 31  # bytes from which a member needs the longer fields of ZIP


def button(
    label: str,
    run: RunDir,
    content: str = "result",
    *,
    primary: bool = False,
    help: str | None = None,
) -> None:
    """A link that downloads; `content` is as in the route."""
    st.link_button(
        label, f"download/{run.id}/{content}", icon=":material/download:", help=help,
        type="primary" if primary else "secondary", key=f"download.{content}.{run.id}",
    )  # fmt: skip


def zip_stream(folder: Path, top: str) -> Iterator[bytes]:
    """The regular files of a folder as a ZIP under the name `top`, piece by piece; weights are
    noise to a compressor."""
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[arg-type]
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or path.is_symlink():
                continue
            member = zipfile.ZipInfo.from_file(
                path, f"{top}/{path.relative_to(folder).as_posix()}", strict_timestamps=False
            )
            is_large = path.stat().st_size >= LARGE
            with path.open("rb") as source, archive.open(
                member, "w", force_zip64=is_large
            ) as packed:  # fmt: skip
                while chunk := source.read(CHUNK):
                    packed.write(chunk)
                    yield pieces.take()
    yield pieces.take()


class _Pieces(io.RawIOBase):
    """A file that cannot seek, as zipfile writes to a pipe; what was written is taken away."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self.written.append(piece)
        return len(piece)

    def take(self) -> bytes:
        data = b"".join(self.written)
        self.written.clear()
        return data


def _download(request: Request) -> Response:
    try:
        run = paths.run_dir(request.path_params["run"])
        content = request.path_params["content"]
        if content == "result":
            return _zipped(run.artifact, f"{run.id}-model")
        if content == "run":
            return _exported(run)
        kind, _, weight_type = content.partition("-")
        file = exports.output(run, kind, weight_type)
    except LabError as error:
        return PlainTextResponse(str(error), status_code=404)

    job = exports.record(run, kind, weight_type)
    if job is None or job.finish != "done":
        return PlainTextResponse("This export does not exist.", status_code=404)
    if file.is_dir():
        return _zipped(file, f"{run.id}-{content}")
    return FileResponse(
        file, media_type="application/octet-stream", filename=f"{run.id}-{weight_type}.gguf"
    )


def _exported(run: RunDir) -> Response:
    """The run as a file that another lab imports, removed once it is sent. Raises LabError."""
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=paths.home()))
    try:
        file = export_import.export(run, folder / "run.zip")
    except BaseException:
        remove_tree(folder)
        raise
    return FileResponse(
        file, media_type="application/zip", filename=f"{run.id}.zip",
        background=BackgroundTask(remove_tree, folder),
    )  # fmt: skip


def _zipped(folder: Path, name: str) -> Response:
    if not folder.is_dir():
        return PlainTextResponse("This run has no trained model.", status_code=404)
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
    return StreamingResponse(
        zip_stream(folder, name), media_type="application/zip", headers=headers
    )


ROUTES = [Route("/download/{run}/{content}", _download)]
