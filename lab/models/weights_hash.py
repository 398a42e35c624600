"""What the weights of a base are, whatever folder they lie in.

The hash is the sha256 of every tensor's name, type, shape and sha256, in the order of the names: it
does not depend on the folder, on the number of files, or on what else their headers say. A result
keeps the hash of the base that it was trained on, and is used with no other one.

Weights are read once for each state of their files, and the hash is kept under
LAB_HOME/cache/weights. The inode's change time is part of that state: unlike the time of the last
write, no program can set it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import paths
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.models import catalog, headers, hub
from lab.models import folder as folders
from lab.models.catalog import ModelSource
from lab.models.headers import Stored
from lab.schema import quote

EVENT = "base"  # of a run's events.jsonl: what its first attempt found
HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
CHUNK_BYTES = 8 << 20
THREADS = min(4, os.cpu_count() or 1)  # sha256 is what takes the time, not the disk
SETTLED_S = 2.0  # after a change, until the clock of any file system tells the next one from it
MAX_QUICK_BYTES = 2_000_000_000  # read within a few seconds, so that a page need not wait

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class WeightsIdentity:
    """What a receipt keeps of the base. `weights`: as `hash_of`; `commit`: of a hub model."""

    model: str
    weights: str
    commit: str = ""

    def to_json(self) -> dict[str, Any]:
        """Without the commit where there is none."""
        record = {"model": self.model, "weights": self.weights}
        return record | ({"commit": self.commit} if self.commit else {})


def identify(source: ModelSource, progress: Progress = lambda done, total: None) -> WeightsIdentity:
    """`progress(done, total)` counts bytes, and may raise to end the reading. Raises LabError."""
    folder = hub.local_folder(source, with_weights=True)
    value = hash_of(folder, source.id, progress)
    return WeightsIdentity(source.id, value, folder.name if source.is_on_hub else "")


def identify_quickly(source: ModelSource) -> WeightsIdentity | None:
    """As `identify`; None where it would take more than a few seconds."""
    if source.is_on_hub:
        return None  # its weights may have to be downloaded first
    files = folders.weight_files(Path(source.location), source.id)
    states = file_states(files)
    if _cached(states) is None and sum(state[2] for state in states) > MAX_QUICK_BYTES:
        return None
    return identify(source)


def hash_of(folder: Path, name: str, progress: Progress = lambda done, total: None) -> str:
    """The hash of the weights in `folder`, which messages call `name`. Raises LabError."""
    files = folders.weight_files(folder, name)
    states = file_states(files)
    cached = _cached(states)
    if cached is not None:
        return cached
    value = _read(files, name, progress)
    if file_states(files) != states:
        raise LabError(
            f"The weights of '{quote(name)}' changed while they were read.",
            "Wait until they are written, and try again.",
        )
    newest = max(max(state[3], state[4]) for state in states)
    if time.time_ns() - newest > SETTLED_S * 1e9:
        with contextlib.suppress(OSError):  # it can be worked out again
            paths.make_folder(_cache_file(states).parent)
            write_json(_cache_file(states), {"v": 1, "weights": value}, durable=False)
    return value


def check(recorded: Any, now: WeightsIdentity, user: str) -> str:
    """A note where nothing was recorded, else empty. Raises LabError if the base is another one.

    `recorded` is what the receipt or the events of `user` (such as "run:ID") say of its base, `now`
    what `identify` says.
    """
    name = quote(now.model)
    if not recorded:
        return (
            f"{user} was trained before the lab kept a hash of the base: whether '{name}' is "
            "still the same one was not checked."
        )
    trained_on = recorded.get("weights") if isinstance(recorded, dict) else None
    if not isinstance(trained_on, str) or not HASH.fullmatch(trained_on):
        raise LabError(
            f"The receipt of {user} is damaged: its base is {quote(recorded)}.",
            "Put receipt.json back as it was.",
        )
    if trained_on != now.weights:
        raise LabError(
            f"The base '{name}' is not the one {user} was trained on (trained on {trained_on}, "
            f"now {now.weights}).",
            "Put the weights back that it was trained on, in any folder or number of files.",
        )
    return ""


def file_states(files: list[Path]) -> list[list[int]]:
    """What changes as soon as a file may hold something else."""
    stats = (file.stat() for file in files)
    return [
        [facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
        for facts in stats
    ]


def state_of(model_id: str) -> list[list[int]]:
    """The states of a local model's weights; empty for a model of the hub, whose files are named
    by what they hold, and for a folder that cannot be read."""
    folder = catalog.local_folder(model_id)
    try:
        return file_states(sorted(folder.glob("*.safetensors"))) if folder else []
    except OSError:
        return []


def _cache_file(states: list[list[int]]) -> Path:
    key = hashlib.sha256(json.dumps(states).encode()).hexdigest()[:32]
    return paths.home() / "cache" / "weights" / f"{key}.json"


def _cached(states: list[list[int]]) -> str | None:
    value = (read_object(_cache_file(states)) or {}).get("weights")
    return value if isinstance(value, str) and HASH.fullmatch(value) else None


def _read(files: list[Path], name: str, progress: Progress) -> str:
    """The hash, from the files themselves, several tensors at a time."""
    tensors = [
        (key, stored, file, begin)
        for file in files
        for begin, listed in [_header(file)]
        for key, stored in listed.items()
    ]
    total = sum(stored.size_bytes for _, stored, _, _ in tensors)
    done, stop = [0] * len(tensors), threading.Event()

    def digest(index: int) -> str:
        _, stored, file, begin = tensors[index]
        hashed, size = hashlib.sha256(), stored.size_bytes
        with file.open("rb") as opened:
            opened.seek(begin + stored.start)
            while done[index] < size and not stop.is_set():
                block = opened.read(min(CHUNK_BYTES, size - done[index]))
                if not block:
                    raise LabError(f"{quote(file.name)} of '{quote(name)}' is cut short.")
                hashed.update(block)
                done[index] += len(block)
        return hashed.hexdigest()

    with ThreadPoolExecutor(THREADS) as pool:
        futures: list[Future[str]] = [pool.submit(digest, index) for index in range(len(tensors))]
        try:
            progress(0, total)
            while wait(futures, timeout=0.5).not_done:
                progress(sum(done), total)
            progress(total, total)
        except BaseException:
            stop.set()
            raise
    entries = sorted(
        (key, stored.dtype, list(stored.shape), future.result())
        for (key, stored, _, _), future in zip(tensors, futures, strict=True)
    )
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _header(file: Path) -> tuple[int, dict[str, Stored]]:
    """(where the tensors' bytes begin, the tensors): read from the file as it is now."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        length = headers.header_length(opened.read(8), size, file.name)
        listed = headers.parse(opened.read(length), size - 8 - length, file.name)
    return 8 + length, listed
