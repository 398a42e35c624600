"""Files of the Hub, fetched to where they are kept: gone on with, measured, verified, stoppable.

Bytes go into `NAME.incomplete`, which a later attempt goes on with by an HTTP range, whoever ended
the earlier one. A file is renamed to its place once its size and hash are those that the Hub's
listing says. One that is not is deleted and fetched once more. The layout is that of the
huggingface_hub library's cache, and so are its locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from lab import paths
from lab.atomic_files import sync_tree
from lab.hub import cache, client, repository, settings
from lab.hub.problems import HubError
from lab.hub.progress import DownloadProgress, Tell
from lab.hub.repository import RemoteFile, Repository
from lab.hub.verification import Digest, damaged, is_remembered, remember

AT_ONCE = 4  # files
LOOK_S = 0.2  # between looks of the caller: how soon a stop is answered
FAILURES = 5  # in a row without a byte, until a download fails
PAUSES_S = (0.3, 1.0, 2.0, 5.0)  # before the next try
MAX_PAUSE_S = 120.0  # that a Hub which limits requests may ask for


class _Stopped(BaseException):
    """The caller has ended the download; raised in its threads only."""


def fetch(
    repo: Repository, files: Iterable[RemoteFile], tell: Tell = lambda progress: None
) -> Path:
    """The snapshot folder with `files` in it, whole and verified.

    `tell(progress)` is called several times a second, from the caller's thread, and may raise to
    stop: what has come stays. Raises LabError; HubError of kind "damaged" for a file that is not
    what the listing says, fetched twice.
    """
    files = list(files)
    base = repository.folder_of(repo.kind, repo.name)
    snapshot = repository.snapshot(repo)
    targets = {entry.blob: base / "blobs" / entry.blob for entry in files}
    with cache.disk_errors(base):
        for folder in (base / "blobs", snapshot):
            paths.make_folder(folder)
        cache.check_room(repo, files)
        with client.waiting():
            fetch_to(repo, files, targets, tell)
        for entry in files:
            cache.link(snapshot / entry.path, targets[entry.blob])
    return snapshot


def fetch_to(
    repo: Repository, files: list[RemoteFile], targets: dict[str, Path], tell: Tell
) -> None:
    """Have each blob of `files` at its place in `targets`; as `fetch` otherwise."""
    blobs = list({entry.blob: entry for entry in files}.values())
    progress = DownloadProgress(sum(entry.size for entry in blobs), len(blobs))
    transfers = [_Transfer(repo, entry, targets[entry.blob]) for entry in blobs]
    work: queue.SimpleQueue[_Transfer] = queue.SimpleQueue()
    for transfer in transfers:
        work.put(transfer)
    stop, failed = threading.Event(), threading.Event()

    def run() -> None:
        while not stop.is_set() and not failed.is_set():
            try:
                transfer = work.get_nowait()
            except queue.Empty:
                return
            try:
                transfer.run(stop)
            except _Stopped:
                return
            except BaseException as error:  # raised again by the caller's thread
                transfer.error = error
                failed.set()

    # daemons: a read that waits for the Hub must not hold back a process that ends
    threads = [
        threading.Thread(target=run, name="download", daemon=True)
        for _ in range(min(AT_ONCE, len(transfers)))
    ]
    for thread in threads:
        thread.start()
    try:
        while True:
            progress.done = sum(transfer.done for transfer in transfers)
            progress.files_done = sum(transfer.is_whole for transfer in transfers)
            progress.checking = any(transfer.is_checking for transfer in transfers)
            progress.received = sum(transfer.received for transfer in transfers)
            progress.mark()
            tell(progress)
            if failed.is_set() or not any(thread.is_alive() for thread in threads):
                break
            for thread in threads:
                if thread.is_alive():
                    thread.join(LOOK_S)
                    break
    finally:
        stop.set()
    for transfer in transfers:
        if transfer.error is not None:
            raise transfer.error
    progress.done, progress.files_done = progress.total, progress.files
    progress.received = sum(transfer.received for transfer in transfers)
    tell(progress)


class _Transfer:
    """One file on its way."""

    def __init__(self, repo: Repository, entry: RemoteFile, target: Path) -> None:
        self.repo, self.entry, self.target = repo, entry, target
        self.partial = target.with_name(f"{target.name}.incomplete")
        self.done = self.received = 0
        self.is_whole = self.is_checking = False
        self.error: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        self._stop = stop
        with self._locked():
            if not self._is_here():
                self._adopt_orphans()
                for attempt in (1, 2):
                    digest = self._receive()
                    if digest.matches():
                        break
                    self.partial.unlink(missing_ok=True)
                    self.done = 0
                    if attempt == 2:
                        raise damaged(self.repo, self.entry, digest)
                sync_tree(self.partial)
                os.replace(self.partial, self.target)
                remember(self.target)
        self.done, self.is_whole = self.entry.size, True

    def _is_here(self) -> bool:
        """Whether the file is in its place and holds what it should; a damaged one is deleted."""
        if cache.size_of(self.target) != self.entry.size:
            self.target.unlink(missing_ok=True)
            return False
        if is_remembered(self.target):
            return True
        self.is_checking, self.done = True, 0
        digest = Digest(self.entry)
        digest.read(self.target, self._count)
        self.is_checking = False
        if digest.matches():
            remember(self.target)
            return True
        self.target.unlink()
        self.done = 0
        return False

    def _count(self, read: int) -> None:
        self.done += read
        if self._stop.is_set():
            raise _Stopped

    def _adopt_orphans(self) -> None:
        """Take over what another program began and left, and remove the rest: its lock is ours."""
        partials = sorted(cache.partials(self.target), key=cache.size_of)
        if partials and partials[-1] != self.partial:
            os.replace(partials[-1], self.partial)
        for orphan in partials[:-1]:
            if orphan != self.partial:
                orphan.unlink(missing_ok=True)

    def _receive(self) -> Digest:
        """Bring the partial file to its whole length; its hash."""
        if cache.size_of(self.partial) > self.entry.size:
            self.partial.unlink()
        digest, self.done = Digest(self.entry), 0
        if self.partial.exists():
            digest.read(self.partial, self._count)
        failures = 0
        while self.done < self.entry.size:
            before = self.done
            try:
                self._receive_some(digest)
            except HubError as error:
                failures = 0 if self.done > before else failures + 1
                is_final = error.retry_s is None and error.kind != "timeout"
                if is_final or failures >= FAILURES:
                    raise
                pause_s = max(error.retry_s or 0.0, PAUSES_S[min(failures, len(PAUSES_S)) - 1])
                if self._stop.wait(min(pause_s, MAX_PAUSE_S)):
                    raise _Stopped from None
        if not self.partial.exists():
            self.partial.touch()  # an empty file
        return digest

    def _receive_some(self, digest: Digest) -> None:
        """Append to the partial file until the connection ends, or the file is whole."""
        headers = {"Accept-Encoding": "identity"}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
        url, about = self.repo.url(self.entry.path), f"{self.entry.path} of {self.repo.name}"
        with client.stream(
            url, f"{self.repo.subject}, file {self.entry.path}",
            read_s=settings.download_s(), headers=headers,
        ) as response:  # fmt: skip
            if self.done and response.status_code != 206:
                self.partial.unlink(missing_ok=True)  # the address sends whole files only
                digest.restart()
                self.done = 0
            with self.partial.open("ab", buffering=0) as file:
                for chunk in response.iter_raw():
                    taken = chunk[: self.entry.size - self.done]
                    file.write(taken)
                    digest.update(taken)
                    self.received += len(taken)
                    self._count(len(taken))
                    if self.done >= self.entry.size:
                        return
        raise HubError(f"{about} ended early.", "Try again.", kind="network", retry_s=0.3)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file's lock, which the huggingface_hub library respects, too; while another
        process downloads the file, its progress is this one's."""
        folder = self.target.parent.parent
        lock_file = folder.parent / ".locks" / folder.name / f"{self.target.name}.lock"
        paths.make_folder(lock_file.parent)
        with lock_file.open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    # the target last: it is there where a partial file was renamed meanwhile
                    files = [*cache.partials(self.target), self.target]
                    self.done = max(0, *(cache.size_of(file) for file in files))
                    if self._stop.wait(LOOK_S):
                        raise _Stopped from None
            yield
