"""Notes on a comparison, kept with the runs that it is of: LAB_HOME/comparisons/KEY.json."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from lab import paths
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.formatting import quantity

MAX_NOTE_CHARS = 20_000  # characters


def file_of(run_ids: Sequence[str]) -> Path:
    """The same for the same runs in any order."""
    key = hashlib.sha256(",".join(sorted(run_ids)).encode()).hexdigest()[:24]
    return paths.home() / "comparisons" / f"{key}.json"


def read(run_ids: Sequence[str]) -> str:
    return str((read_object(file_of(run_ids)) or {}).get("notes") or "")[:MAX_NOTE_CHARS]


def write(run_ids: Sequence[str], text: str) -> None:
    """Raises LabError for a text that is too long."""
    if len(text) > MAX_NOTE_CHARS:
        raise LabError(
            f"The notes have {quantity(len(text), 'character')}.", f"Keep to {MAX_NOTE_CHARS:,}."
        )
    file = file_of(run_ids)
    paths.make_folder(file.parent)
    write_json(file, {"v": 1, "runs": sorted(run_ids), "notes": text, "changed": time.time()})
