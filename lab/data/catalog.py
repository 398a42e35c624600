"""The datasets that the lab brings along, each with a card beside it in assets/datasets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.files import read_object
from lab.paths import ASSETS
from lab.schema import show

SUFFIXES = (".jsonl", ".json")


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
    """The dataset of that id. Raises LabError that names the value and the way out."""
    kind, _, name = dataset_id.partition(":")
    if kind == "builtin":
        for dataset in built_in():
            if dataset.id == dataset_id:
                return dataset
        choices = ", ".join(dataset.id for dataset in built_in())
        raise LabError(
            f"Unknown dataset 'builtin:{show(name)}'.", f"Choose one of: {choices}; or a file."
        )
    path = Path(os.path.expanduser(dataset_id))
    if path.suffix.lower() not in SUFFIXES:
        choices = ", ".join(dataset.id for dataset in built_in())
        raise LabError(
            f"Unknown dataset '{show(dataset_id)}'.",
            f"Give a file ending in {' or '.join(SUFFIXES)}, or one of: {choices}.",
        )
    if not is_file(path):
        raise LabError(f"The dataset file '{show(dataset_id)}' does not exist.", "Check the path.")
    return Dataset(str(path.absolute()), path.absolute(), {})


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
