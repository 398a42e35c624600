"""Tokenised data on disk: made once, shared between runs, read without being loaded.

LAB_HOME/cache/tokens/KEY/ holds ids.bin (uint32), counted.bin (uint8), index.bin (int64, five for
each sequence: end in ids.bin, row in the file, number of the example, whether it was cut, counted
tokens) and meta.json. KEY hashes the file's content, the tokenizer, the template and every setting
that decides tokens. Folders are written to a temporary path and renamed, so a
folder with its final name is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from lab import paths
from lab.atomic_files import read_object, sha256_of, write_json
from lab.data import rendering, stop_tokens
from lab.data.chat_template import IGNORE_INDEX, TokenizedExample
from lab.errors import LabError
from lab.schema import quote

VERSION = 3  # of what tokenising does: raise it when the same settings give other tokens
FIELDS = 5
BUFFER = 1 << 20  # tokens held before they are written


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
        is_whole = stored.is_whole()
        os.utime(path / "meta.json")  # when it was last of use
    except (OSError, ValueError):
        is_whole = False
    if is_whole:
        return stored
    shutil.rmtree(path, ignore_errors=True)
    return None


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
            _publish(aside, key)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise LabError(
            f"The tokens cannot be written to {quote(str(folder()))}: {error.strerror or error}.",
            "Free some room, or set LAB_HOME to a folder that can be written.",
        ) from None
    return TokenizedDataset(folder() / key)


def _publish(aside: Path, key: str) -> None:
    """Give a whole set its name, unless another run was faster."""
    try:
        os.rename(aside, folder() / key)
    except OSError:
        if find(key) is None:
            raise


def _write(
    aside: Path, sequences: Iterable[tuple[int, TokenizedExample]], meta: dict[str, Any]
) -> None:
    end = 0
    with (
        (aside / "ids.bin").open("wb", buffering=BUFFER) as ids,
        (aside / "counted.bin").open("wb", buffering=BUFFER) as counted,
        (aside / "index.bin").open("wb", buffering=BUFFER) as index,
    ):
        for number, sequence in sequences:
            end += len(sequence.ids)
            ids.write(np.asarray(sequence.ids, np.uint32).tobytes())
            mask = np.asarray(sequence.labels, np.int64) != IGNORE_INDEX
            counted.write(mask.astype(np.uint8).tobytes())
            entry = [end, sequence.record_number, number, sequence.truncated, mask.sum()]
            index.write(np.array(entry, np.int64).tobytes())
    write_json(aside / "meta.json", meta)
