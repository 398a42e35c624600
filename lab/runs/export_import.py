"""A finished run as one file, to carry it to another machine; hostile files are refused.

A plain ZIP of the run directory with `MANIFEST.json` (sizes and sha256 of every member). Only
names of the contract, safetensors, JSON and text; nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import json_text, paths
from lab.atomic_files import open_regular, read_object, remove_tree, sync_folder, sync_tree
from lab.data import template_lock
from lab.errors import LabError, of_the_disk
from lab.models import headers
from lab.paths import RunDir
from lab.runs.status import status
from lab.schema import quote

MANIFEST = "MANIFEST.json"
TOP = (
    r"(spec|estimate|environment|result|labels|pins|resume|first_batch)\.json|"
    r"(metrics|events|held_out)\.jsonl|log\.txt"
)
INNER = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.(safetensors|json|jinja|txt|model)"
FOLDERS = r"artifact|checkpoints/step-[0-9]{1,9}|attempts/[0-9]{1,4}"
CARD = r"artifact/README\.md"  # the model card, the only member in Markdown
MEMBER = re.compile(rf"(?:{TOP}|{CARD}|(?:{FOLDERS})/{INNER})", re.ASCII)
MAX_MEMBERS = 5_000
MAX_RATIO = 400  # metrics compress well; a bomb compresses a thousandfold
MAX_MANIFEST_BYTES = 10_000_000
RESERVE_BYTES = 200_000_000  # of disk that an import leaves free
CHUNK = 1 << 20
LEFT_S = 24 * 3600.0  # after which an import that was killed is cleared away
# what zipfile and the decompressors raise for bytes that are not what they seem
DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, ValueError,
    NotImplementedError, RuntimeError, IndexError, OverflowError, MemoryError,
)  # fmt: skip


def export(run: RunDir, target: Path, *, checkpoints: bool = False) -> Path:
    """Write the run into `target`; checkpoints only if asked for.

    Raises LabError, also where the tokenizer beside the result is no longer the one in training.
    """
    now = status(run)
    if not now.has_ended:
        raise LabError(f"{run.id} is {now.state}.", "Only a run that has ended is exported.")
    if read_object(run.result) is None or read_object(run.spec) is None:
        raise LabError(
            f"{run.id} has no readable result.json and spec.json, so that no lab would import it.",
            "Resume the run first; when it ends, it writes its result.",
        )
    taken = LabError(f"'{quote(str(target))}' exists.", "Choose another name.")
    if target.exists() or target.is_symlink():
        raise taken
    template_lock.enforce_files(read_object(run.artifact / "receipt.json") or {}, run.artifact)
    try:
        handle, name = tempfile.mkstemp(prefix=".tmp-export-", dir=target.parent)
        aside = Path(name)
        try:
            with os.fdopen(handle, "w+b") as file:
                _pack(run, file, checkpoints)
                file.flush()
                os.fsync(file.fileno())
            _move(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    except FileExistsError:
        raise taken from None
    except OSError as error:
        reason = error.strerror or error
        raise LabError(
            f"'{quote(str(target))}' could not be written: {reason}.",
            "Check the folder and disk.",
        ) from None
    return target


def _pack(run: RunDir, file: Any, checkpoints: bool) -> None:
    """The archive of `run`, each member hashed as it is written."""
    listed = {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        for name in _files(run, checkpoints):
            member = zipfile.ZipInfo.from_file(run.path / name, name, strict_timestamps=False)
            # weights are noise to a compressor
            is_noise = name.endswith(".safetensors")
            if is_noise:
                headers.read(run.path / name)  # no lab would import a damaged one
            member.compress_type = zipfile.ZIP_STORED if is_noise else zipfile.ZIP_DEFLATED
            digest, size = hashlib.sha256(), 0
            with (run.path / name).open("rb") as source, archive.open(member, "w") as packed:
                while chunk := source.read(CHUNK):
                    size += len(chunk)
                    digest.update(chunk)
                    packed.write(chunk)
            listed[name] = {"bytes": size, "sha256": digest.hexdigest()}
        manifest = {"v": 1, "run": run.id, "files": listed}
        archive.writestr(MANIFEST, json.dumps(manifest, indent=1))


def _move(aside: Path, target: Path) -> None:
    """Give the file its name. Raises FileExistsError if somebody else has taken it meanwhile."""
    sync_tree(aside)
    try:
        os.link(aside, target)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        os.replace(aside, target)


def _files(run: RunDir, checkpoints: bool) -> list[str]:
    names = []
    for file in sorted(run.path.rglob("*")):
        name = file.relative_to(run.path).as_posix()
        if file.is_symlink() or not file.is_file() or not MEMBER.fullmatch(name):
            continue
        if name.startswith("checkpoints/") and not checkpoints:
            continue
        names.append(name)
    return names


def import_run(source: Path) -> RunDir:
    """The run of an exported file, under its own id, or a new one if that is taken.

    Raises LabError, and leaves nothing behind, for anything that `export` would not have written.
    """
    folder = paths.runs()
    with _reading(source) as archive:
        manifest = _manifest(archive)
        _look_at_the_disk(archive)
        paths.make_folder(folder)
        _clear_away(folder)
        # a folder of its own: two imports at once must not write into one
        aside = Path(tempfile.mkdtemp(prefix=".tmp-import-", dir=folder))
        try:
            for name, listed in manifest["files"].items():
                _extract(archive, name, listed, aside)
            _look_through(aside, manifest["files"])
            (aside / "commands").mkdir(exist_ok=True)
            (aside / "checkpoints").mkdir(exist_ok=True)
            return _put(aside, manifest["run"])
        finally:
            remove_tree(aside)


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, with every sign of damage as a LabError."""
    way_out = "Give a file made by 'python -m lab export', and copy it again if it is damaged."
    try:
        file, _ = open_regular(source)
        with file, zipfile.ZipFile(file) as archive:
            yield archive
    except LabError:
        raise
    except OSError as error:
        refusal = of_the_disk(error)
        if refusal is not None and error.filename and str(source) != str(error.filename):
            raise refusal from None
        reason = error.strerror or "it is damaged"
        raise LabError(f"'{quote(str(source))}' cannot be imported: {reason}.", way_out) from None
    except DAMAGE as error:
        kind = "not a ZIP archive" if isinstance(error, zipfile.BadZipFile) else "damaged"
        raise LabError(
            f"'{quote(str(source))}' cannot be imported: it is {kind}, or cut short.", way_out
        ) from None


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    """The manifest, after every member's name, kind and size has been looked at."""
    members = archive.infolist()
    names = [member.filename for member in members]
    is_plain = len({name.casefold() for name in names}) == len(names) <= MAX_MEMBERS
    if not is_plain or MANIFEST not in names:
        raise LabError("The file is not an exported run.", "Give a file made by export.")
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        name = quote(member.filename)
        if member.filename != MANIFEST and not MEMBER.fullmatch(member.filename):
            raise LabError(f"The file holds '{name}', which no run has.")
        if kind not in (0, stat.S_IFREG) or member.flag_bits & 1:
            raise LabError(f"'{name}' is a link, a device, or encrypted.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise LabError(f"'{name}' is packed in a way that export never uses.")
        if member.file_size > MAX_RATIO * max(member.compress_size, 1024):
            raise LabError(f"'{name}' unpacks to a suspicious size.")
    if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
        raise LabError("The manifest is too large.")
    try:
        manifest = json_text.parse(archive.read(MANIFEST))
    except json_text.BadJson:
        manifest = None
    if not _is_whole(manifest, set(names) - {MANIFEST}):
        raise LabError("The file's manifest does not match its contents.", "Export it again.")
    for name in ("spec.json", "result.json"):
        if name not in names:
            raise LabError(f"The file holds no {name}, so it is not a run.", "Export it again.")
    return dict(manifest)


def _is_whole(manifest: Any, names: set[str]) -> bool:
    """Whether a manifest is one, and lists exactly the members of these names."""
    if not isinstance(manifest, dict) or manifest.get("v") != 1:
        return False
    files, run_id = manifest.get("files"), manifest.get("run")
    if not isinstance(files, dict) or not isinstance(run_id, str):
        return False
    return files.keys() == names and paths.RUN_ID.fullmatch(run_id) is not None


def _look_at_the_disk(archive: zipfile.ZipFile) -> None:
    needed = sum(member.file_size for member in archive.infolist())
    home = next(folder for folder in (paths.runs(), *paths.runs().parents) if folder.exists())
    free = shutil.disk_usage(home).free
    if needed > free - RESERVE_BYTES:
        raise LabError(
            f"The run needs {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free in "
            f"'{home}', of which {RESERVE_BYTES / 1e9:.1f} GB stay free.",
            "Make room, or set LAB_HOME to another disk.",
        )


def _extract(archive: zipfile.ZipFile, name: str, listed: Any, folder: Path) -> None:
    """One member, never more bytes than it declared, its size and hash held to the manifest."""
    target = folder / name
    paths.make_folder(target.parent)
    declared = archive.getinfo(name).file_size
    digest, size = hashlib.sha256(), 0
    with archive.open(name) as source, target.open("xb") as file:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > declared:
                raise LabError(f"'{quote(name)}' is larger than it says.")
            digest.update(chunk)
            file.write(chunk)
    if listed != {"bytes": size, "sha256": digest.hexdigest()}:
        raise LabError(f"'{quote(name)}' is damaged.", "Export it again.")
    if name.endswith(".safetensors"):
        headers.read(target)


def _look_through(folder: Path, files: dict[str, Any]) -> None:
    """Whether all of the manifest lies in `folder`, and it is a run that has ended."""
    sizes = {
        file.relative_to(folder).as_posix(): file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file()
    }
    if sizes != {name: listed["bytes"] for name, listed in files.items()}:
        raise LabError("What was unpacked is not what the file holds.", "Import it again.")
    run = RunDir(folder)
    stored = read_object(run.spec) or {}
    if not all(isinstance(stored.get(name), dict) for name in ("method", "data", "train")):
        raise LabError("The spec.json in the file is not the spec of a run.", "Export it again.")
    if not status(run).has_ended:
        raise LabError("The file holds no finished run.", "Export it again.")


def _put(aside: Path, run_id: str) -> RunDir:
    """Give the run its own id, or another one while that is taken: of two imports of one run at
    the same moment, one gets the id, the other a new one."""
    folder = paths.runs()
    method = run_id.split("-")[2]
    sync_tree(aside)
    while True:
        target = folder / run_id
        try:
            if not target.exists():  # a rename would also take the place of an empty folder
                os.rename(aside, target)
                sync_folder(folder)
                return RunDir(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        run_id = paths.new_run_id(method)


def _clear_away(folder: Path) -> None:
    """What imports that were killed have left."""
    for left in folder.glob(".tmp-import-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_S:
                remove_tree(left)
