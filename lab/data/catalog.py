"""What a dataset id means: `builtin:NAME`, `upload:NAME`, a file, or a Hub ID."""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import paths
from lab.atomic_files import open_regular, part, read_object, real_file, sync_folder
from lab.data import hub
from lab.data.readers import SUFFIXES, suffix_of
from lab.errors import LabError
from lab.paths import ASSETS
from lab.schema import quote, with_current_names
from lab.spec_sections import DataSpec

ASIDE = ".tmp-upload-"
DATASET_FIELDS = ("dataset", "eval_dataset", "general_dataset")
MAX_NAME_CHARS = 100
MAX_ALIKE = 1000  # uploads whose names become the same safe one
UPLOAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


@dataclass(frozen=True)
class Dataset:
    """A resolved dataset id. `card` is empty for a file of the user's own."""

    id: str
    path: Path
    card: dict[str, Any]

    @property
    def system_prompt(self) -> str:
        return str(self.card.get("system_prompt", ""))


def built_in() -> list[Dataset]:
    """Every dataset with a card, by name."""
    return list(_with_cards(ASSETS / "datasets"))


@functools.cache
def _with_cards(folder: Path) -> tuple[Dataset, ...]:
    """Read once: they belong to the program, and a form asks for them at every key."""
    cards = ((path, read_object(path)) for path in sorted(folder.glob("*.json")))
    return tuple(
        Dataset(f"builtin:{path.stem}", folder / card["file"], card)
        for path, card in cards
        if card and "file" in card
    )


def resolve(dataset_id: str) -> Dataset:
    """The dataset of that id, its file on this machine; one of the hub by the commit of its rows.
    Nothing is fetched. Raises LabError that names the value and the way out."""
    kind, colon, name = dataset_id.partition(":")
    if kind == "builtin" and colon:
        for dataset in built_in():
            if dataset.id == dataset_id:
                return dataset
            other = dataset.card.get("held_out")
            if other and dataset_id == f"{dataset.id}@held-out":
                return Dataset(dataset_id, dataset.path.with_name(other), dataset.card)
        choices = ", ".join(dataset.id for dataset in built_in())
        raise LabError(
            f"Unknown dataset 'builtin:{quote(name)}'.",
            f"Choose one of: {choices}; or a file.",
        )
    if kind == "upload" and colon:
        return _uploaded(name)
    path = Path(os.path.expanduser(dataset_id))
    if suffix_of(path):
        real = data_file(path)
        return Dataset(str(real), real, {})
    if hub.is_id(dataset_id):
        wanted = hub.parse(dataset_id)
        return Dataset(str(hub.pinned(wanted)), hub.file_of(wanted), {})
    choices = ", ".join(dataset.id for dataset in built_in())
    raise LabError(
        f"Unknown dataset '{quote(dataset_id)}'.",
        f"Give a file ending in {', '.join(SUFFIXES)}, a Hub ID such as org/name, upload:NAME, or "
        f"one of: {choices}.",
    )


def is_on_hub(dataset_id: str) -> bool:
    """Whether `resolve` would look for this id among the sets of the hub."""
    is_other = dataset_id.partition(":")[0] in ("builtin", "upload")
    return not is_other and not suffix_of(Path(dataset_id)) and hub.is_id(dataset_id)


def hub_datasets(spec: dict[str, Any]) -> dict[str, str]:
    """{field of the data section: ID} of the sets of the Hub that a spec names, whatever the names
    that its fields had when it was written."""
    data = with_current_names(DataSpec, part(spec, "data"))
    return {
        name: data[name]
        for name in DATASET_FIELDS
        if isinstance(data.get(name), str) and is_on_hub(data[name])
    }


def pinned(dataset_id: Any) -> Any:
    """A hub id with the commit of the rows that are here; anything else as it is."""
    if isinstance(dataset_id, str) and is_on_hub(dataset_id):
        return str(hub.pinned(hub.parse(dataset_id)))
    return dataset_id


def data_file(path: Path) -> Path:
    """The file of this machine that `path` names, every link followed. Raises LabError if there is
    none, or if it is not data by its own name, whatever the link to it is called."""
    real = real_file(path, "dataset file")
    if not suffix_of(real):
        raise LabError(
            f"'{quote(str(path))}' is a link to '{quote(str(real))}', which is not a data file.",
            f"Give a file ending in {', '.join(SUFFIXES)}.",
        )
    return real


def uploads_folder() -> Path:
    return paths.home() / "datasets"


def uploads() -> list[Dataset]:
    """The files that were given to the lab, by name."""
    try:
        paths_there = sorted(uploads_folder().iterdir())
    except OSError:
        return []  # none was ever added, or the folder cannot be listed
    return [Dataset(f"upload:{path.name}", path, {}) for path in paths_there if _is_upload(path)]


def _is_upload(path: Path) -> bool:
    is_name = UPLOAD.fullmatch(path.name) is not None and path.parent == uploads_folder()
    return is_name and suffix_of(path) != "" and not path.is_symlink() and path.is_file()


def _uploaded(name: str) -> Dataset:
    path = uploads_folder() / name
    if _is_upload(path):
        return Dataset(f"upload:{name}", path, {})
    known = ", ".join(dataset.id for dataset in uploads()) or "none"
    raise LabError(
        f"There is no uploaded dataset '{quote(name)}'.",
        f"Uploaded are: {known}. Add one on the Data page, or with "
        "'python -m lab datasets add FILE'.",
    )


def safe_name(name: str) -> str:
    """A name for an upload that any file system takes, as close to `name` as may be: of
    "chats (1).jsonl" "chats-1.jsonl", of a name without Latin letters "upload.jsonl"."""
    base = _base(name)
    lower = base.lower()
    suffix = next((ending for ending in reversed(SUFFIXES) if lower.endswith(ending)), "")
    stem = unicodedata.normalize("NFKD", base[: len(base) - len(suffix)])
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem.encode("ascii", "ignore").decode())
    plain = plain.strip("-._")[: MAX_NAME_CHARS - len(suffix) - len("-999")]
    return f"{plain or 'upload'}{suffix}"


def _base(name: str) -> str:
    """The last part of a path as any system writes it."""
    return re.split(r"[/\\]", name)[-1]


def add(name: str, blocks: Iterable[bytes]) -> Dataset:
    """Keep an upload under its name, or under a safe one with a number where that is taken; it is
    written aside first. Raises LabError for what is not data by its name, and for a name that is
    taken."""
    if not suffix_of(Path(_base(name))):
        raise LabError(
            f"'{quote(name)}' cannot be the name of a dataset.",
            f"Use one of these endings: {', '.join(SUFFIXES)}.",
        )
    is_safe = UPLOAD.fullmatch(name) is not None
    names = [name] if is_safe else _numbered(safe_name(name))
    folder = uploads_folder()
    if is_safe and os.path.lexists(folder / name):
        raise _is_taken(name)
    aside = None
    try:
        paths.make_folder(folder)
        _clear(folder)
        # a name of its own: two uploads may go on in one process
        handle, aside = tempfile.mkstemp(prefix=ASIDE, dir=folder)
        with os.fdopen(handle, "wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        target = _publish(aside, [folder / free for free in names])
        sync_folder(folder)
    except OSError as error:
        raise LabError(
            f"'{quote(name)}' could not be kept in {quote(str(folder))}: "
            f"{error.strerror or error}.",
            f"{_free(folder)}Free some room, or set LAB_HOME to a folder that can be written.",
        ) from None
    finally:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)
    if target is None:
        raise _is_taken(names[-1])
    return Dataset(f"upload:{target.name}", target, {})


def renamed(name: str, dataset: Dataset) -> str:
    """Says under which name a file is kept as an upload, if not its own; "" otherwise."""
    stored_name = dataset.id.removeprefix("upload:")
    return "" if stored_name == name else f"'{quote(name)}' is kept as '{stored_name}'."


def _numbered(name: str) -> list[str]:
    """The name, and what it becomes where it is taken: "chats-2.jsonl"."""
    suffix = next(ending for ending in reversed(SUFFIXES) if name.endswith(ending))
    stem = name.removesuffix(suffix)
    return [name, *(f"{stem}-{copy_number}{suffix}" for copy_number in range(2, MAX_ALIKE))]


def _is_taken(name: str) -> LabError:
    return LabError(
        f"There is an uploaded dataset '{name}' already.", "Rename the file, or remove it."
    )


def _publish(aside: str, targets: list[Path]) -> Path | None:
    """Give a whole file the first of these names that is free; None if none is."""
    for target in targets:
        try:
            os.link(aside, target)
            return target
        except FileExistsError:  # another upload was faster, or has it for long
            continue
        except OSError:  # a file system without links
            try:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                continue
            os.replace(aside, target)
            return target
    return None


def _clear(folder: Path) -> None:
    """Remove what uploads left that were killed a day ago or longer."""
    for path in folder.glob(f"{ASIDE}*"):
        if time.time() - path.lstat().st_mtime > 86_400:
            path.unlink(missing_ok=True)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free. "
    except OSError:
        return ""


def add_file(path: Path) -> Dataset:
    """Keep a copy of a file of this machine as an upload. Raises LabError."""
    real = data_file(path)
    if suffix_of(path) != suffix_of(real):
        raise LabError(
            f"'{quote(str(path))}' is a link to '{quote(str(real))}'.",
            "Give the file itself.",
        )
    try:
        file, opened = open_regular(real)
    except OSError as error:
        raise LabError(
            f"'{quote(str(path))}' cannot be read: {error.strerror}.", "Check the file."
        ) from None
    with file:
        if suffix_of(opened) != suffix_of(real):
            raise LabError(f"'{quote(str(path))}' was changed meanwhile.", "Try again.")
        return add(path.name, iter(lambda: file.read(1 << 20), b""))


def remove(name: str) -> None:
    """Remove an upload. Raises LabError if there is none."""
    try:
        _uploaded(name).path.unlink()
    except OSError as error:
        raise LabError(
            f"'{quote(name)}' cannot be removed: {error.strerror}.", "Check the folder."
        ) from None
