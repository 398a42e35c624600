"""Datasets of the hub: fetched once into LAB_HOME/datasets/hub, read as files from then on.

An id is org/name or org/name:config, with @split another split, with #revision a branch, tag or
commit. Fetching is asked for, never done because an id was typed: `python -m lab datasets fetch ID`
is a process of its own, which outlives the page and writes its progress beside the file. What a
check has found is the id with its commit: it names the same rows from then on.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab import formatting, paths, process
from lab.atomic_files import finite_number, read_object, write_json
from lab.errors import LabError
from lab.hub import credentials, repository, settings
from lab.hub.problems import unreachable
from lab.paths import ASSETS
from lab.schema import quote

ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(:(?P<config>[\w.+-]{1,64}))?(@(?P<split>[\w.-]{1,64}))?(#(?P<revision>[\w./-]{1,200}))?",
    re.ASCII,
)
STATES = ("fetching", "done", "failed")
MAX_STEM_CHARS = 200  # characters: with their endings, names stay below the 255 of a disk


@dataclass(frozen=True)
class HubId:
    """`config` and `split` are None for the only one, or the one that is called default and train;
    `revision` is "" for the branch main."""

    name: str
    config: str | None = None
    split: str | None = None
    revision: str = ""

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        split = f"@{self.split}" if self.split not in (None, "train") else ""
        return f"{self.name}{config}{split}" + (f"#{self.revision}" if self.revision else "")

    @property
    def stem(self) -> str:
        parts = [*self.name.split("/"), self.config or "default", self.split or "train"]
        if self.revision:
            parts.append(self.revision.replace("/", "--"))  # no id holds two dashes
        stem = "--".join(parts)
        if len(stem) <= MAX_STEM_CHARS:
            return stem
        return f"{stem[: MAX_STEM_CHARS - 18]}--{hashlib.sha256(stem.encode()).hexdigest()[:16]}"

    @property
    def file(self) -> Path:
        """Where its rows lie; of a branch those of the commit that was fetched last."""
        commit = (read_object(self.record) or {}).get("commit")
        is_branch = not repository.is_commit(self.revision)
        stem = self.at(commit).stem if is_branch and repository.is_commit(commit) else self.stem
        return folder() / f"{stem}.jsonl"

    @property
    def record(self) -> Path:
        """Progress of a fetch, then its outcome."""
        return folder() / f"{self.stem}.state.json"

    def at(self, commit: str) -> HubId:
        return replace(self, revision=commit)


def folder() -> Path:
    return paths.home() / "datasets" / "hub"


def is_id(text: str) -> bool:
    return ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def parse(text: str) -> HubId:
    match = ID.fullmatch(text)
    if match is None or not is_id(text):
        raise LabError(
            f"'{quote(text)}' is not a Hub dataset ID.",
            "Write org/name, org/name:config or org/name@split, with #revision for another branch.",
        )
    split = None if match["split"] == "train" else match["split"]
    return HubId(match["name"], match["config"], split, match["revision"] or "")


@dataclass(frozen=True)
class KnownDataset:
    id: str
    title: str
    license: str
    rows: int
    format: str
    summary: str


def known() -> list[KnownDataset]:
    """Well-known sets of the hub to choose from."""
    listed = read_object(ASSETS / "hub_datasets.json") or {}
    return [KnownDataset(**each) for each in listed.get("datasets", [])]


def fetched() -> list[str]:
    """The ids that are on this machine, as they were asked for."""
    records = [read_object(path) or {} for path in sorted(folder().glob("*.state.json"))]
    ids = [record.get("id") for record in records if record.get("state") == "done"]
    # a file may have been removed by hand, a record damaged
    sets = [parse(text) for text in ids if isinstance(text, str) and is_id(text)]
    return [
        str(wanted)
        for wanted in sets
        if wanted.file.is_file() and not repository.is_commit(wanted.revision)
    ]


def file_of(wanted: HubId) -> Path:
    """The file of a fetched set. Raises LabError for one that is not here: nothing is fetched."""
    if wanted.file.is_file():
        return wanted.file
    state = state_of(wanted)
    if state.state == "fetching":
        raise LabError(
            f"'{wanted}' is still being fetched ({state.progress}).",
            "Try again when it is done; the Data page shows the progress.",
        )
    if state.state == "failed":
        raise LabError(state.message, state.hint)
    raise LabError(
        f"'{wanted}' is not on this machine yet.",
        f"Download it: with the button beside the field, on the Data page, or with "
        f"'python -m lab datasets fetch {wanted}'.",
    )


def pinned(wanted: HubId) -> HubId:
    """The id with the commit of the rows that are here; as it is where that is not known."""
    commit = (read_object(wanted.record) or {}).get("commit")
    if not repository.is_commit(commit) or not wanted.at(commit).file.is_file():
        return wanted
    return wanted.at(commit)


def moved_on(wanted: HubId, requested: str) -> str:
    """A sentence if the branch that `requested` names has moved on since its rows were fetched."""
    if not is_id(requested) or not repository.is_commit(wanted.revision) or settings.is_offline():
        return ""
    branch = parse(requested).revision
    now = repository.commit_now("datasets", wanted.name, branch)
    text = repository.moved_on(wanted.name, branch, wanted.revision, now)
    return f"{text} Fetch the dataset again for its newer rows." if text else ""


def split_note(wanted: HubId) -> str:
    """A sentence if the rows that are here are those of another split than `wanted` names: a set
    has only one, and that is not called train."""
    split = (read_object(wanted.record) or {}).get("split")
    named = wanted.split or "train"
    if not isinstance(split, str) or split == named:
        return ""
    return (
        f"'{wanted.name}' has no split '{named}': its only split, '{quote(split)}', is used. These "
        "may be rows that others measure models on."
    )


@dataclass(frozen=True)
class FetchState:
    """How far a fetch is. `state`: one of STATES, "" where nothing is fetched; `total` and
    `total_bytes`: None where they are not known."""

    state: str = ""
    rows: int = 0
    total: int | None = None
    bytes: int = 0
    total_bytes: int | None = None
    bytes_per_s: float = 0.0
    message: str = ""
    hint: str = ""

    @property
    def progress(self) -> str:
        """ "1.20 MB of 4.00 MB, 2.00 MB/s", then "12,000 rows of 50,000"."""
        if self.rows:
            rows = formatting.quantity(self.rows, "row")
            return rows + (f" of {self.total:,}" if self.total else "")
        if not self.total_bytes:
            return "0 rows so far"
        words = f"{formatting.size(self.bytes)} of {formatting.size(self.total_bytes)}"
        return f"{words}, {formatting.size(self.bytes_per_s)}/s" if self.bytes_per_s else words


def state_of(wanted: HubId) -> FetchState:
    """What the record of a fetch says, which may be damaged."""
    record = read_object(wanted.record) or {}
    state = FetchState(
        record["state"] if record.get("state") in STATES else "",
        _count(record.get("rows")) or 0,
        _count(record.get("total")),
        _count(record.get("bytes")) or 0,
        _count(record.get("total_bytes")),
        finite_number(record.get("bytes_per_s")) or 0.0,
        str(record.get("message") or ""),
        str(record.get("hint") or ""),
    )
    if state.state == "done" and not wanted.file.is_file():
        return replace(state, state="")  # its file was removed
    if state.state == "fetching" and not process.is_alive(record.get("process")):
        message = f"Fetching '{wanted}' was interrupted."
        hint = "Fetch it again: the download continues where it stopped."
        return replace(state, state="failed", message=message, hint=hint)
    return state


def _count(value: Any) -> int | None:
    """A number of rows from a record, which may be damaged."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


def start_fetch(wanted: HubId, token: str | None = None) -> None:
    """Fetch in a process of its own, unless one does already; a set that is here is looked at
    again on the hub. Raises LabError for a token that cannot be one."""
    if state_of(wanted).state == "fetching":
        return
    if settings.is_offline():
        subject = repository.subject("datasets", str(wanted))
        raise unreachable(subject, "HF_HUB_OFFLINE is set", kind="offline")
    paths.make_folder(folder())
    child = process.spawn(
        ["lab", "datasets", "fetch", str(wanted)],
        folder() / f"{wanted.stem}.log",
        # through a pipe, for the child alone: this process and its other children never have it
        access=credentials.access_line(token),
    )
    note(wanted, "fetching", pid=child.pid)


def stop_fetch(wanted: HubId) -> None:
    """End the process that fetches `wanted`, if there is one; what has come is kept."""
    record = read_object(wanted.record) or {}
    if record.get("state") == "fetching" and process.send(record.get("process"), signal.SIGTERM):
        note(
            wanted,
            "failed",
            message=f"Fetching '{wanted}' was stopped ({state_of(wanted).progress}).",
            hint="Fetch it again: the download continues where it stopped.",
        )


def note(wanted: HubId, state: str, pid: int | None = None, **more: Any) -> None:
    """Write the record of a fetch."""
    before = read_object(wanted.record) or {}
    unchanged: dict[str, Any] = {key: before[key] for key in ("commit", "split") if key in before}
    record = {"v": 1, "id": str(wanted), "state": state, **unchanged, **more}
    record["process"] = process.identity(pid or os.getpid())
    write_json(wanted.record, record, durable=False)


def remove(wanted: HubId) -> None:
    """Delete the rows of a fetched set, and what is known of it. Raises LabError if there is none,
    or while it is fetched."""
    if state_of(wanted).state == "fetching":
        raise LabError(f"'{wanted}' is being fetched.", "Wait until it is done, or stop it.")
    files = (wanted.file, pinned(wanted).record, wanted.record)
    if not any(file.is_file() for file in files):
        raise LabError(
            f"'{wanted}' is not on this machine.", "'python -m lab datasets' lists what there is."
        )
    for file in (*files, folder() / f"{wanted.stem}.log"):
        file.unlink(missing_ok=True)
