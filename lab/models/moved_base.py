"""The base of a run whose folder is gone: another folder with equal weights, found by their hash.

Looked at are folders beside the old place, those in LAB_MODELS, and those that other runs name. The
old name comes first, since a folder that was moved mostly keeps it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import paths
from lab.atomic_files import read_object
from lab.errors import LabError
from lab.models import catalog, weights_hash
from lab.models.weights_hash import HASH

MAX_FOLDERS = 12  # folders whose weights are read: gigabytes each


def model_of(model_id: str, recorded: Any) -> str:
    """The id of a run's base: `model_id`, or, where that folder is gone, one that holds the
    weights which were `recorded` of it (as `weights_hash.identify` writes it)."""
    folder = catalog.local_folder(model_id)
    wanted = recorded.get("weights") if isinstance(recorded, dict) else None
    if folder is None or folder.is_dir() or not isinstance(wanted, str):
        return model_id
    if not HASH.fullmatch(wanted) or model_id.startswith("builtin:"):
        return model_id
    for candidate, _ in zip(_candidates(folder), range(MAX_FOLDERS), strict=False):
        with contextlib.suppress(LabError, OSError):  # it is no model, or cannot be read
            if weights_hash.hash_of(candidate, str(candidate)) == wanted:
                return str(candidate)
    raise LabError(
        f"The model folder '{model_id}' does not exist, and no other holds its weights ({wanted}).",
        f"Put it back, or anywhere into {paths.models()}: it is known by its weights.",
    )


def _candidates(gone: Path) -> Iterator[Path]:
    """Folders with weights, those of the old name first."""
    named = [Path(str((read_object(run.spec) or {}).get("model", ""))) for run in paths.all_runs()]
    folders = [*_inside(gone.parent), *_inside(paths.models()), *named]
    seen: set[Path] = set()
    for folder in sorted(folders, key=lambda candidate: candidate.name != gone.name):
        with contextlib.suppress(OSError, ValueError):
            if folder.is_absolute() and folder not in seen and any(folder.glob("*.safetensors")):
                seen.add(folder)
                yield folder


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []
