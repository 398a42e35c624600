"""Fetch a dataset of the hub: its files as they are, verified, then its rows as JSONL.

Which files make a config and a split is the datasets library's to say: it is shown the repository
as a folder of empty files beside the real README.md, so that it asks no network. Only the files of
the split that is wanted are downloaded; they are removed once their rows are written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import formatting, paths
from lab.atomic_files import read_object, sync_tree
from lab.data import hub
from lab.data.hub import HubId
from lab.errors import LabError, first_line
from lab.hub import cache, download, repository
from lab.hub.progress import DownloadProgress, Tell
from lab.hub.repository import RemoteFile, Repository
from lab.schema import quote

CARD = "README.md"
# dataset_infos.json is a description of former times, which an empty file cannot give
NOT_DATA = re.compile(r"(.*/)?(\.[^/]+|[^/]+\.(py|md|gitattributes))|dataset_infos\.json")
ELSEWHERE = re.compile(r"[/~\\]|.*(://|::)|(.*/)?\.\.(/|$)", re.DOTALL)
ROOM_PER_BYTE = 4  # of rows as JSON for each byte of a packed file such as parquet
NOTE_S = 1.0


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, and the names that the set itself gives to config and split."""

    config: str
    split: str
    files: list[RemoteFile]


def fetch(wanted: HubId, check: Callable[[], None] = lambda: None) -> Path:
    """The file with the rows of the set as it is on the hub now, fetched in this process if it is
    not here. `check()` is called several times a second and may raise to stop: what has come stays.
    Raises LabError, noted in the record."""
    paths.make_folder(hub.folder())
    hub.note(wanted, "fetching")
    try:
        repo = repository.resolve("datasets", wanted.name, wanted.revision)
        at = wanted.at(repo.commit)
        rows, split = hub.state_of(at).rows, (read_object(at.record) or {}).get("split")
        if not at.file.is_file():
            rows, split = _fetch(repo, wanted, at, check)
    except LabError as error:
        hub.note(wanted, "failed", message=error.message, hint=error.hint)
        raise
    except BaseException as error:
        words = first_line(error)
        hub.note(wanted, "failed", message=f"Fetching '{wanted}' failed: {words}.", hint="")
        raise
    for entry in (at, wanted):
        hub.note(entry, "done", rows=rows, commit=repo.commit, split=split)
    return at.file


def _fetch(
    repo: Repository, wanted: HubId, at: HubId, check: Callable[[], None]
) -> tuple[int, str]:
    """Write the rows of `at` to its file; (how many there are, the split that they are of)."""
    folder = hub.folder() / "downloads" / "--".join(wanted.name.split("/")) / repo.commit
    aside = at.file.with_name(f".tmp-{at.file.name}-{os.getpid()}")
    noted_at = [0.0]

    def tell(progress: DownloadProgress) -> None:
        check()
        if time.monotonic() - noted_at[0] > NOTE_S:
            noted_at[0] = time.monotonic()
            hub.note(
                wanted,
                "fetching",
                bytes=progress.done,
                total_bytes=progress.total,
                bytes_per_s=round(progress.bytes_per_s),
            )

    listed = repository.files(repo)
    with cache.disk_errors(folder):
        mirror = folder / "files"
        _lay_out(repo, listed, folder, mirror)
        split = split_files(wanted, mirror, listed)
        _check_room(split.files, wanted)
        _bring(repo, split.files, folder, mirror, tell)
        try:
            rows = _write_rows(wanted, mirror, split, aside, check)
            sync_tree(aside)
            os.replace(aside, at.file)
        finally:
            aside.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return rows, split.split


def _lay_out(repo: Repository, listed: dict[str, RemoteFile], folder: Path, mirror: Path) -> None:
    """The repository as a folder: empty files, and the card, which says what belongs together."""
    shutil.rmtree(mirror, ignore_errors=True)
    for path in listed:
        if not NOT_DATA.fullmatch(path):
            paths.make_folder((mirror / path).parent)
            (mirror / path).touch()
    paths.make_folder(mirror)
    if CARD in listed:
        _bring(repo, [listed[CARD]], folder, mirror, lambda progress: None)


def _bring(
    repo: Repository, files: list[RemoteFile], folder: Path, mirror: Path, tell: Tell
) -> None:
    """Download `files` and put them where the mirror has them."""
    blobs = paths.make_folder(folder / "blobs")
    download.fetch_to(repo, files, {entry.blob: blobs / entry.blob for entry in files}, tell)
    for entry in files:
        link = mirror / entry.path
        link.unlink(missing_ok=True)
        link.symlink_to(blobs / entry.blob)


def split_files(wanted: HubId, mirror: Path, listed: dict[str, RemoteFile]) -> SplitFiles:
    """The files of the config and split that are wanted. Raises LabError that lists every config
    or split where there is a choice."""
    import datasets

    cache = str(mirror.parent / "cache")
    try:
        _check_card(wanted, mirror / CARD)
        configs = [str(name) for name in datasets.get_dataset_config_names(str(mirror))]
        config = _chosen(wanted, "config", wanted.config, configs, "default")
        builder = datasets.load_dataset_builder(str(mirror), config, cache_dir=cache)
    except LabError:
        raise
    except Exception as error:  # a card is a stranger's: any nonsense may stand in it
        raise LabError(
            f"'{wanted}' cannot be read: {_words(error, mirror)}.",
            "Its files are in no format that the datasets library reads without code of its own; "
            "download one by hand and give that.",
        ) from None
    by_split = {str(key): list(paths) for key, paths in (builder.config.data_files or {}).items()}
    split = _chosen(wanted, "split", wanted.split, list(by_split), "train")
    names = [os.path.relpath(str(path), mirror) for path in by_split[split]]
    files = [listed[name] for name in names if name in listed]
    if not files:
        raise LabError(f"'{wanted}' has no files.", "Check the ID, or choose another split.")
    return SplitFiles(config, split, files)


def _check_card(wanted: HubId, card: Path) -> None:
    """Raise LabError if the card names data outside its repository: the library would look there,
    on this disk or at any address."""
    from huggingface_hub import DatasetCard

    configs = DatasetCard.load(card).data.get("configs") if card.is_file() else None
    waiting = [
        config.get(key)
        for config in (configs if isinstance(configs, list) else [])
        if isinstance(config, dict)
        for key in ("data_files", "data_dir")
    ]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str) and ELSEWHERE.match(value):
            raise LabError(
                f"The card of '{wanted}' names data outside its repository ('{quote(value)}').",
                "Download the data by hand, and give the file.",
            )


def _chosen(wanted: HubId, kind: str, requested: str | None, choices: list[str], usual: str) -> str:
    """The one that is requested for, the only one, or the usual one."""
    if requested is None and len(choices) == 1:
        return choices[0]
    name = requested or usual
    if name in choices:
        return name
    listed = ", ".join(quote(choice) for choice in choices) or "none"
    example = quote(choices[0]) if choices else kind
    if kind == "config":
        example = f"{wanted.name}:{example}"
    else:
        example = f"{wanted.name}{f':{wanted.config}' if wanted.config else ''}@{example}"
    verb = f"has no {kind} '{quote(name)}'" if requested else f"has several {kind}s, none '{usual}'"
    raise LabError(
        f"'{wanted}' {verb}.",
        f"Choose one of its {len(choices)} {kind}s, as {example}: {listed}.",
    )


def _check_room(files: list[RemoteFile], wanted: HubId) -> None:
    needed = (1 + ROOM_PER_BYTE) * sum(entry.size for entry in files)
    free = shutil.disk_usage(hub.folder()).free
    if needed > free:
        raise LabError(
            f"Not enough disk: '{wanted}' may need {formatting.size(needed)} in "
            f"'{hub.folder()}', {formatting.size(free)} are free.",
            "Free some room there, or set LAB_HOME to a folder on another disk.",
        )


def _write_rows(
    wanted: HubId, mirror: Path, split: SplitFiles, aside: Path, check: Callable[[], None]
) -> int:
    """The rows as lines of JSON in `aside`; how many there are."""
    count, noted_at = 0, time.monotonic()
    with aside.open("w", encoding="utf-8") as file:
        for row, total in _rows(wanted, mirror, split):
            file.write(json.dumps(row, ensure_ascii=False, default=_as_text) + "\n")
            count += 1
            if count % 100 == 0:
                check()
            if time.monotonic() - noted_at > NOTE_S:
                noted_at = time.monotonic()
                hub.note(wanted, "fetching", rows=count, total=total)
    if not count:
        raise LabError(
            f"'{wanted}' has no rows in the split {quote(split.split)}.", "Choose another split."
        )
    return count


def _rows(
    wanted: HubId, mirror: Path, split: SplitFiles
) -> Iterator[tuple[dict[str, Any], int | None]]:
    """(a row, how many there are if the card says it), in constant memory."""
    import datasets
    from datasets.data_files import DataFilesDict, DataFilesList

    paths_here = [str(mirror / entry.path) for entry in split.files]
    try:
        builder = datasets.load_dataset_builder(
            str(mirror), split.config, cache_dir=str(mirror.parent / "cache")
        )
        # the other splits are empty files here, and the library looks into each that it knows
        builder.config.data_files = DataFilesDict(
            {split.split: DataFilesList(paths_here, [None] * len(paths_here))}
        )
        rows = builder.as_streaming_dataset(split=split.split)
        info = (getattr(rows.info, "splits", None) or {}).get(split.split)
        total = getattr(info, "num_examples", None)
        for row in rows:
            yield row, total
    except (LabError, GeneratorExit):
        raise
    except StopIteration:
        return  # how the library says that a file holds nothing
    except Exception as error:  # the files are a stranger's
        raise LabError(
            f"'{wanted}' cannot be read: {_words(error, mirror)}.",
            "Its files do not hold what their names or its card say.",
        ) from None


def _as_text(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)) or hasattr(value, "tobytes"):
        raise LabError(
            ("The dataset holds images, audio or other binary data."), "Choose a set of text."
        )
    return str(value)  # dates and the like


def _words(error: BaseException, mirror: Path) -> str:
    """What the library says, without the folder of this machine that it was shown."""
    return first_line(error).replace(f"{mirror}/", "").replace(str(mirror), "the repository")
