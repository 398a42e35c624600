"""The cache of the hub on this disk, laid out as the huggingface_hub library lays it out.

REPOSITORY/blobs holds files by their hash, snapshots/COMMIT names that lead to them, refs/BRANCH
the commit that a branch was at.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from lab import formatting, paths
from lab.atomic_files import sync_tree
from lab.errors import LabError, refusal_of
from lab.hub import repository, settings
from lab.hub.repository import RemoteFile, Repository


def missing(repo: Repository, files: Iterable[RemoteFile]) -> int:
    """Bytes of the files that are still to come, what lies in partial files left out."""
    folder = repository.folder_of(repo.kind, repo.name) / "blobs"
    total = 0
    for blob, size in {entry.blob: entry.size for entry in files}.items():
        if size_of(folder / blob) != size:
            total += max(0, size - max([size_of(part) for part in partials(folder / blob)] or [0]))
    return total


def are_here(repo: Repository, files: Iterable[RemoteFile]) -> bool:
    """Whether every file is in the cache at its whole length."""
    folder = repository.folder_of(repo.kind, repo.name) / "blobs"
    return all(size_of(folder / entry.blob) == entry.size for entry in files)


def check_room(repo: Repository, files: list[RemoteFile]) -> None:
    """Raise LabError if the disk of the cache has no room for what is still to come."""
    needed, folder = missing(repo, files), repository.folder_of(repo.kind, repo.name)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise LabError(
            f"Not enough disk: {formatting.size(needed)} are still to be downloaded to "
            f"'{settings.cache_folder()}', {formatting.size(free)} are free.",
            "Free some room there, or set HF_HOME to a folder on another disk.",
        )


def note_reference(repo: Repository, revision: str) -> None:
    """Write down that a branch or tag is at this commit, for times without a network."""
    if repository.is_commit(revision):
        return
    file = repository.folder_of(repo.kind, repo.name) / "refs" / (revision or repository.MAIN)
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with disk_errors(file):
        try:
            paths.make_folder(file.parent)
            if not file.is_file() or file.read_text(encoding="utf-8") != repo.commit:
                aside.write_text(repo.commit, encoding="utf-8")
                os.replace(aside, file)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            # the note of a branch `a` lies where `a/b` needs a folder: the Hub cannot have both,
            # and without a network the older word is as good
            with contextlib.suppress(OSError):
                aside.unlink()


def link(link_path: Path, blob: Path) -> None:
    """A name in the snapshot for a blob, relative as the library makes it."""
    paths.make_folder(link_path.parent)
    target = os.path.relpath(blob, link_path.parent)
    if link_path.is_symlink() and os.readlink(link_path) == target:
        return
    aside = link_path.with_name(f".{link_path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(target)
    except OSError:  # a file system without links
        shutil.copyfile(blob, aside)
        sync_tree(aside)
    os.replace(aside, link_path)


def partials(target: Path) -> list[Path]:
    """What was begun of a file, by the lab or by the huggingface_hub library."""
    if not target.parent.is_dir():
        return []
    return list(target.parent.glob(f"{target.name}.*incomplete"))


def size_of(file: Path) -> int:
    """Bytes of a file, -1 if there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return -1


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What a disk refuses, as a message that names the cache."""
    try:
        yield
    except OSError as error:
        says = refusal_of(error).message.rstrip(".")
        raise LabError(
            f"{says}, while files of the Hub were written to '{folder}'.",
            "Free some room there, or set HF_HOME to a folder on another disk; what has come is "
            "kept and gone on with.",
        ) from None
