"""What a dataset id means: `builtin:NAME`, `upload:NAME`, a file, or a hub id."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import paths
from lab.data import hub
from lab.data.files import SUFFIXES, suffix_of
from lab.errors import LabError
from lab.files import read_object, sync_folder
from lab.paths import ASSETS
from lab.schema import show

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
    folder = ASSETS / "datasets"
    found = []
    for path in sorted(folder.glob("*.json")):
        card = read_object(path)
        if card and "file" in card:
            found.append(Dataset(f"builtin:{path.stem}", folder / card["file"], card))
    return found


def resolve(dataset_id: str) -> Dataset:
    """The dataset of that id, its file on this machine. Raises LabError that names the value and
    the way out."""
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
            f"Unknown dataset 'builtin:{show(name)}'.", f"Choose one of: {choices}; or a file."
        )
    if kind == "upload" and colon:
        return _uploaded(name)
    path = Path(os.path.expanduser(dataset_id))
    if suffix_of(path):
        if not is_file(path):
            raise LabError(
                f"The dataset file '{show(dataset_id)}' does not exist.", "Check the path."
            )
        return Dataset(str(path.absolute()), path.absolute(), {})
    if hub.is_id(dataset_id):
        return Dataset(dataset_id, hub.file_of(hub.parse(dataset_id)), {})
    choices = ", ".join(dataset.id for dataset in built_in())
    raise LabError(
        f"Unknown dataset '{show(dataset_id)}'.",
        f"Give a file ending in {', '.join(SUFFIXES)}, a hub id such as org/name, upload:NAME, or "
        f"one of: {choices}.",
    )


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def uploads_folder() -> Path:
    return paths.home() / "datasets"


def uploads() -> list[Dataset]:
    """The files that were given to the lab, by name."""
    folder = uploads_folder()
    if not folder.is_dir():
        return []
    return [
        Dataset(f"upload:{path.name}", path, {})
        for path in sorted(folder.iterdir())
        if UPLOAD.fullmatch(path.name) and suffix_of(path) and path.is_file()
    ]


def _uploaded(name: str) -> Dataset:
    path = uploads_folder() / name
    if UPLOAD.fullmatch(name) and suffix_of(path) and not path.is_symlink() and is_file(path):
        return Dataset(f"upload:{name}", path, {})
    known = ", ".join(dataset.id for dataset in uploads()) or "none"
    raise LabError(
        f"There is no uploaded dataset '{show(name)}'.",
        f"Uploaded are: {known}. Add one on the Data page, or with "
        "`python -m lab datasets add FILE`.",
    )


def add(name: str, blocks: Iterable[bytes]) -> Dataset:
    """Keep an upload under its name, written aside first. Raises LabError for a name that is
    taken or not a plain file name."""
    if not UPLOAD.fullmatch(name) or not suffix_of(Path(name)):
        raise LabError(
            f"'{show(name)}' cannot be the name of a dataset.",
            "Use letters, digits, dots, dashes and underscores, and one of these endings: "
            f"{', '.join(SUFFIXES)}.",
        )
    folder = uploads_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    if target.exists():
        raise LabError(
            f"There is an uploaded dataset '{name}' already.", "Rename the file, or remove it."
        )
    aside = folder / f".tmp-{name}-{os.getpid()}"
    try:
        with aside.open("wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, target)  # fails where another upload of this name was faster
        sync_folder(folder)
    except FileExistsError:
        raise LabError(f"There is an uploaded dataset '{name}' already.") from None
    except OSError as error:
        raise LabError(
            f"'{name}' could not be kept: {error.strerror}.",
            f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free.",
        ) from None
    finally:
        aside.unlink(missing_ok=True)
    return Dataset(f"upload:{name}", target, {})


def add_file(path: Path) -> Dataset:
    """Keep a copy of a file of this machine as an upload."""
    if not is_file(path):
        raise LabError(f"There is no file '{show(str(path))}'.", "Check the path.")
    with path.open("rb") as file:
        return add(path.name, iter(lambda: file.read(1 << 20), b""))


def remove(name: str) -> None:
    """Remove an upload. Raises LabError if there is none."""
    _uploaded(name).path.unlink()
