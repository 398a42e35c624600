"""Tokenised data on disk: made once, shared between runs, read without being loaded.

LAB_HOME/cache/tokens/KEY/ holds ids.bin (uint32), counted.bin (uint8), index.bin (int64, five for
each sequence: end in ids.bin, row in the file, number of the example, whether it was cut, counted
tokens) and meta.json. KEY hashes the file's content, the tokenizer, the template and every setting
that decides tokens. Folders are written to a temporary path and renamed, so a
folder with its final name is complete. Whoever reads a set holds a shared lock on its meta.json;
beyond MAX_SETS and MAX_BYTES the sets used least recently go, but none that anybody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from lab import paths
from lab.atomic_files import read_object, sha256_of, size_of, sync_tree, write_json
from lab.data import rendering, stop_tokens
from lab.data.chat_template import IGNORE_INDEX, TokenizedExample
from lab.errors import LabError
from lab.schema import quote

VERSION = 3  # of what tokenising does: raise it when the same settings give other tokens
FIELDS = 5
BUFFER = 1 << 20  # tokens held before they are written
# What stays beside the sets in use: each sequence length that is tried makes a set of its own.
MAX_SETS = 64
MAX_BYTES = 8_000_000_000
ABANDONED_S = 24 * 3600.0  # a temporary folder that nobody has written to for so long


def folder() -> Path:
    return paths.home() / "cache" / "tokens"


def content_hash(path: Path) -> str:
    """sha256 of a file. Raises LabError if it cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise LabError(
            f"'{quote(str(path))}' cannot be read: {error.strerror or error}.",
            "Check the file.",
        ) from None


def key(path: Path, tokenizer: Any, settings: dict[str, Any]) -> str:
    """What tokens a file gives under these settings, as one hash."""
    digest = hashlib.sha256()
    digest.update(content_hash(path).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    parts = [
        VERSION,
        tokenizer.chat_template,
        tokenizer.eos_token,
        tokenizer.bos_token,
        rendering.settings_of(tokenizer).to_json(),
        sorted(stop_tokens.ids(tokenizer)),
        settings,
    ]
    digest.update(json.dumps(parts, sort_keys=True).encode())
    return digest.hexdigest()[:32]


class TokenizedDataset(Sequence[TokenizedExample]):
    """The sequences of a stored set. Only the index is held in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _shared_lock(path / "meta.json")  # until nobody reads it any more
        self.meta = read_object(path / "meta.json") or {}
        self._ids = _map(path / "ids.bin", np.uint32)
        self._counted = _map(path / "counted.bin", np.uint8)
        index = _map(path / "index.bin", np.int64).reshape(-1, FIELDS)
        self._ends = np.array(index[:, 0])
        self._starts = np.concatenate([np.zeros(1, np.int64), self._ends[:-1]])[: len(self._ends)]
        self.rows = np.array(index[:, 1])
        self.examples = np.array(index[:, 2])
        self.cut = np.array(index[:, 3]).astype(bool)
        self.learned = np.array(index[:, 4])

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each sequence."""
        sizes: np.ndarray = self._ends - self._starts
        return sizes

    def is_whole(self) -> bool:
        """Whether the files belong together, and meta.json says what a set's does."""
        tokens = int(self._ends[-1]) if len(self._ends) else 0
        is_ordered = bool((self.lengths >= 0).all())
        kinds = {"examples": int, "bad": int, "told": str, "has_chats": bool, "first": dict}
        says = all(isinstance(self.meta.get(name), kind) for name, kind in kinds.items())
        return says and is_ordered and len(self._ids) == len(self._counted) == tokens

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part = slice(int(self._starts[index]), int(self._ends[index]))
        ids = self._ids[part]
        labels = np.where(self._counted[part] > 0, ids.astype(np.int64), IGNORE_INDEX)
        return TokenizedExample(
            ids.tolist(), labels.tolist(), int(self.rows[index]), bool(self.cut[index])
        )


def _shared_lock(file: Path) -> IO[bytes]:
    """`file`, open, and locked against deletion as long as it is. Raises OSError."""
    opened = file.open("rb")
    with contextlib.suppress(OSError):  # a file system without locks: then nothing is pruned
        fcntl.flock(opened, fcntl.LOCK_SH)
    return opened


def _map(path: Path, kind: Any) -> np.ndarray:
    """A file as an array, without reading it; an empty file cannot be mapped."""
    if path.stat().st_size == 0:
        return np.zeros(0, kind)
    return np.memmap(path, kind, mode="r")


def find(key: str) -> TokenizedDataset | None:
    """The stored set of that key, or None. One that is damaged is removed, and made again."""
    path = folder() / key
    if not (path / "meta.json").is_file():
        return None
    try:
        stored = TokenizedDataset(path)
        os.utime(path / "meta.json")  # when it was last of use
        if stored.is_whole():
            return stored
        del stored  # and its lock
    except (OSError, ValueError):
        pass
    _remove(path)
    return None


def prune() -> None:
    """Remove the sets used least recently beyond MAX_SETS and MAX_BYTES, and what writers that were
    killed have left. The newest set stays, and each that somebody has open."""
    now, sizes = time.time(), {}
    for path in folder().iterdir():
        with contextlib.suppress(OSError):  # removed by another process meanwhile
            if not path.name.startswith("."):
                sizes[path] = (path / "meta.json").stat().st_mtime, size_of(path)
            elif now - max(file.stat().st_mtime for file in [path, *path.iterdir()]) > ABANDONED_S:
                shutil.rmtree(path)
    newest_first = sorted(sizes, key=lambda path: sizes[path], reverse=True)
    count = total = 0
    for path in newest_first:
        is_too_much = count >= MAX_SETS or total + sizes[path][1] > MAX_BYTES
        if count and is_too_much and _remove(path):
            continue
        count, total = count + 1, total + sizes[path][1]


def _remove(path: Path) -> bool:
    """Remove a set that nobody has open; whether it is gone."""
    try:
        with (path / "meta.json").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            aside = Path(tempfile.mkdtemp(prefix=".tmp-removed-", dir=folder()))
            os.rename(path, aside)  # gone at once for everybody
            shutil.rmtree(aside, ignore_errors=True)
    except FileNotFoundError:
        return True
    except OSError:  # somebody reads it
        return False
    return True


def write(
    key: str, sequences: Iterable[tuple[int, TokenizedExample]], meta: dict[str, Any]
) -> TokenizedDataset:
    """Store (number of the example, its tokens) in order. `meta` may be filled while they come;
    it is written last."""
    try:
        paths.make_folder(folder())
        aside = Path(tempfile.mkdtemp(prefix=f".tmp-{key}-", dir=folder()))
        try:
            _write(aside, sequences, meta)
            with _shared_lock(aside / "meta.json"):  # nobody may prune it before it is read
                _publish(aside, key)
                written = TokenizedDataset(folder() / key)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        prune()
    except OSError as error:
        raise LabError(
            f"The tokens cannot be written to {quote(str(folder()))}: {error.strerror or error}.",
            "Free some room, or set LAB_HOME to a folder that can be written.",
        ) from None
    return written


def _publish(aside: Path, key: str) -> None:
    """Give a whole set its name, unless another run was faster."""
    sync_tree(aside)
    try:
        os.rename(aside, folder() / key)
    except OSError:
        if find(key) is None:
            shutil.rmtree(folder() / key, ignore_errors=True)  # the rest of a set without meta.json
            os.rename(aside, folder() / key)


def _write(
    aside: Path, sequences: Iterable[tuple[int, TokenizedExample]], meta: dict[str, Any]
) -> None:
    end = 0
    with (
        (aside / "ids.bin").open("wb", buffering=BUFFER) as ids,
        (aside / "counted.bin").open("wb", buffering=BUFFER) as counted,
        (aside / "index.bin").open("wb", buffering=BUFFER) as index,
    ):
        for example, sequence in sequences:
            end += len(sequence.ids)
            ids.write(np.asarray(sequence.ids, np.uint32).tobytes())
            mask = np.asarray(sequence.labels, np.int64) != IGNORE_INDEX
            counted.write(mask.astype(np.uint8).tobytes())
            entry = [end, sequence.record_number, example, sequence.truncated, mask.sum()]
            index.write(np.array(entry, np.int64).tobytes())
    write_json(aside / "meta.json", meta)
