"""A finished run as one file, to carry it to another machine; hostile files are refused.

A plain ZIP of the run directory with `MANIFEST.json` (sizes and sha256 of every member). Only
names of the contract, safetensors, JSON and text; nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

from lab import paths
from lab.data import lock
from lab.errors import LabError
from lab.files import open_regular, read_object, remove_tree, sync_folder
from lab.models import headers
from lab.paths import RunDir
from lab.runs import launch
from lab.runs.status import status
from lab.schema import show

MANIFEST = "MANIFEST.json"
TOP = (
    r"(spec|estimate|environment|result|labels|pins|resume)\.json|(metrics|events)\.jsonl|log\.txt"
)
INNER = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.(safetensors|json|jinja|txt|model)"
FOLDERS = r"artifact|checkpoints/step-[0-9]{1,9}|attempts/[0-9]{1,4}"
MEMBER = re.compile(rf"(?:{TOP}|(?:{FOLDERS})/{INNER})", re.ASCII)
MOST_MEMBERS = 5_000
MOST_RATIO = 400  # metrics compress well; a bomb compresses a thousandfold
CHUNK = 1 << 20


def export(run: RunDir, target: Path, *, checkpoints: bool = False) -> Path:
    """Write the run into `target`; checkpoints only if asked for.

    Raises LabError, also where the tokenizer beside the result is no longer the one in training.
    """
    if not status(run).has_ended:
        raise LabError(
            f"{run.id} is {status(run).state}.", "Only a run that has ended is exported."
        )
    if target.exists():
        raise LabError(f"'{show(str(target))}' exists.", "Choose another name.")
    lock.enforce_files(read_object(run.artifact / "receipt.json") or {}, run.artifact)
    # a name that nobody can have put a link under before
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with (
            aside.open("xb") as packed,
            zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive,
        ):
            listed = {}
            for name in _files(run, checkpoints):
                file = run.path / name
                # weights are noise to a compressor
                kind = zipfile.ZIP_STORED if name.endswith(".safetensors") else None
                archive.write(file, name, compress_type=kind)
                if name.endswith(".safetensors"):
                    headers.read(file)
                listed[name] = {"bytes": file.stat().st_size, "sha256": _hash(file)}
            manifest = {"v": 1, "run": run.id, "files": listed}
            archive.writestr(MANIFEST, json.dumps(manifest, indent=1))
        os.replace(aside, target)
    except OSError as error:
        raise LabError(f"The export failed: {error}.", "Check the folder and the disk.") from None
    finally:
        aside.unlink(missing_ok=True)
    return target


def _files(run: RunDir, checkpoints: bool) -> list[str]:
    found = []
    for file in sorted(run.path.rglob("*")):
        name = file.relative_to(run.path).as_posix()
        if file.is_symlink() or not file.is_file() or not MEMBER.fullmatch(name):
            continue
        if name.startswith("checkpoints/") and not checkpoints:
            continue
        found.append(name)
    return found


def import_run(source: Path) -> RunDir:
    """The run of an exported file, under its own id, or a new one if that is taken.

    Raises LabError, and leaves nothing behind, for anything that `export` would not have written.
    """
    try:
        file, _ = open_regular(source)
        with file, zipfile.ZipFile(file) as archive:
            manifest = _manifest(archive)
            folder = paths.runs()
            paths.make_folder(folder)
            aside = folder / f".tmp-import-{os.getpid()}"
            remove_tree(aside)
            aside.mkdir()
            try:
                for name, want in manifest["files"].items():
                    _extract(archive, name, want, aside)
                (aside / "commands").mkdir(exist_ok=True)
                (aside / "checkpoints").mkdir(exist_ok=True)
                if not status(RunDir(aside)).has_ended:
                    raise LabError("The file holds no finished run.", "Export it again.")
                run_id = manifest["run"]
                if (folder / run_id).exists():
                    run_id = launch.new_id(run_id.split("-")[2])
                os.rename(aside, folder / run_id)
                sync_folder(folder)
            finally:
                remove_tree(aside)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise LabError(
            f"'{show(str(source))}' cannot be imported: {error}.", "Give a file made by export."
        ) from None
    return RunDir(paths.runs() / run_id)


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    """The manifest, after every member's name, kind and size has been looked at."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(members) > MOST_MEMBERS or len(set(names)) != len(names) or MANIFEST not in names:
        raise LabError("The file is not an exported run.", "Give a file made by export.")
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.filename != MANIFEST and not MEMBER.fullmatch(member.filename):
            raise LabError(f"The file holds '{show(member.filename)}', which no run has.")
        if kind not in (0, stat.S_IFREG) or member.flag_bits & 1:
            raise LabError(f"'{show(member.filename)}' is a link, or is encrypted.")
        if member.file_size > MOST_RATIO * max(member.compress_size, 1024):
            raise LabError(f"'{show(member.filename)}' unpacks to a suspicious size.")
    total = sum(member.file_size for member in members)
    free = shutil.disk_usage(paths.home() if paths.home().exists() else Path.home()).free
    if total > free - 200_000_000:
        raise LabError(f"The run needs {total / 1e9:.2f} GB, {free / 1e9:.2f} GB are free.")
    if archive.getinfo(MANIFEST).file_size > 10_000_000:
        raise LabError("The manifest is too large.")
    try:
        manifest = json.loads(archive.read(MANIFEST))
        files, run_id = manifest["files"], manifest["run"]
        known = set(names) - {MANIFEST} == set(files) and paths.RUN_ID.fullmatch(run_id)
    except (ValueError, KeyError, TypeError, RecursionError):
        known = None
    if not known:
        raise LabError("The file's manifest does not match its contents.", "Export it again.")
    return dict(manifest)


def _extract(archive: zipfile.ZipFile, name: str, want: Any, folder: Path) -> None:
    """One member, never more bytes than it declared, its hash checked."""
    target = folder / name
    paths.make_folder(target.parent)
    declared = archive.getinfo(name).file_size
    digest, size = hashlib.sha256(), 0
    with archive.open(name) as source, target.open("xb") as file:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > declared:
                raise LabError(f"'{show(name)}' is larger than it says.")
            digest.update(chunk)
            file.write(chunk)
    if not isinstance(want, dict) or want.get("sha256") != digest.hexdigest():
        raise LabError(f"'{show(name)}' is damaged.", "Export it again.")
    if name.endswith(".safetensors"):
        headers.read(target)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
