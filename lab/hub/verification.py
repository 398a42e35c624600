"""Whether a file is what the Hub's record says: by its hash, read once for each state of it.

That a state was verified is kept under LAB_HOME/cache/hub, so that a file is read again only after
it may have changed. The inode's change time is part of that state: no program can set it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from lab import paths
from lab.atomic_files import read_object, write_json
from lab.hub import repository
from lab.hub.problems import HubError
from lab.hub.progress import DownloadProgress, Tell
from lab.hub.repository import RemoteFile, Repository

BLOCK_BYTES = 8 << 20


class Digest:
    """The hashes that a listing may name: sha256 of large files; of small ones git's own, or the
    plain sha1 that some mirrors give."""

    def __init__(self, entry: RemoteFile) -> None:
        self.entry = entry
        self.restart()

    def restart(self) -> None:
        if self.entry.sha256:
            self._hashes = [hashlib.sha256()]
        else:
            git = hashlib.sha1(f"blob {self.entry.size}\0".encode(), usedforsecurity=False)
            self._hashes = [git, hashlib.sha1(usedforsecurity=False)]

    def update(self, data: bytes) -> None:
        for digest in self._hashes:
            digest.update(data)

    def read(self, file: Path, count: Callable[[int], None]) -> None:
        with file.open("rb") as opened:
            while block := opened.read(BLOCK_BYTES):
                self.update(block)
                count(len(block))

    def values(self) -> list[str]:
        return [digest.hexdigest() for digest in self._hashes]

    def matches(self) -> bool:
        return self.entry.blob in self.values()


def damaged(repo: Repository, entry: RemoteFile, digest: Digest) -> HubError:
    return HubError(
        f"{repo.subject}: {entry.path} arrived damaged twice (its hash is "
        f"{digest.values()[0][:12]}…, the Hub's record says {entry.blob[:12]}…). It was deleted.",
        "Try again later, or without the mirror or proxy that stands between.",
        kind="damaged",
    )


def verify(folder: Path, repo: Repository, tell: Tell = lambda progress: None) -> None:
    """Hold what another program has brought into the cache against the hashes that the names of
    its blobs say. Raises HubError of kind "damaged"; the damaged file is deleted."""
    files = {
        file: RemoteFile(file.name, file.resolve().stat().st_size, file.resolve().name)
        for file in sorted(folder.glob("*.safetensors"))
        if file.is_symlink() and repository.SHA256.fullmatch(Path(os.readlink(file)).name)
    }
    progress = DownloadProgress(
        sum(entry.size for entry in files.values()), len(files), checking=True
    )

    def count(read: int) -> None:
        progress.done += read
        tell(progress)

    for file, entry in files.items():
        blob = file.resolve()
        if not is_remembered(blob):
            digest = Digest(entry)
            digest.read(blob, count)
            if not digest.matches():
                blob.unlink()
                raise HubError(
                    f"{repo.subject}: {file.name} in the cache is damaged. It was deleted.",
                    "Start again with a network: it is downloaded again.",
                    kind="damaged",
                )
            remember(blob)
        progress.files_done += 1


def _state_file(file: Path) -> Path:
    facts = file.stat()
    key = f"{facts.st_dev} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return paths.home() / "cache" / "hub" / f"verified-{name}.json"


def remember(file: Path) -> None:
    """This state of the file was verified: it is not read again until it changes."""
    with contextlib.suppress(OSError):
        record = _state_file(file)
        paths.make_folder(record.parent)
        write_json(record, {"v": 1, "blob": file.name}, durable=False)


def is_remembered(file: Path) -> bool:
    return (read_object(_state_file(file)) or {}).get("blob") == file.name
