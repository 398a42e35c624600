"""What other trackers hold of a run that is deleted: `train.report_to` wrote it beside the run.

TensorBoard, W&B and MLflow have a folder for each run below LAB_HOME/trackers, Trackio has rows in
one database. Read as files and by sqlite3: their libraries take seconds to import.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lab import paths
from lab.atomic_files import part, read_object, remove_tree
from lab.paths import RunDir

NAME = re.compile(r"\w+", re.ASCII)  # of a table
BUSY_S = 5.0  # that a tracker's page may hold its database


def folder() -> Path:
    return paths.home() / "trackers"


def trackers_of(run: RunDir) -> list[str]:
    """The trackers that were told of `run`; none before its first record."""
    report_to = part(read_object(run.spec), "train").get("report_to")
    if not isinstance(report_to, list) or not run.metrics.exists():
        return []
    return [name for name in REMOVE if name in report_to]


def remove(run_id: str, trackers: list[str]) -> list[str]:
    """Remove the records of a run; a sentence for each of `trackers` that may hold some still."""
    notes = []
    for name in trackers:
        try:
            is_removed = REMOVE[name](run_id)
        except (OSError, sqlite3.Error) as error:
            notes.append(f"The records of {run_id} in {name} could not be removed: {error}.")
            continue
        if not is_removed:
            notes.append(
                f"{name} has no records of {run_id} under LAB_HOME. If it sent them to a server, "
                "they are still there: delete them there."
            )
    return notes


def _remove_folders(folders: Iterable[Path]) -> bool:
    listed = list(folders)
    for path in listed:
        remove_tree(path)
    return bool(listed)


def _of_mlflow(run_id: str) -> Iterator[Path]:
    """EXPERIMENT/ID, with the run's name in a file of its own."""
    for name in (folder() / "mlflow").glob("*/*/tags/mlflow.runName"):
        if name.read_text(encoding="utf-8", errors="replace").strip() == run_id:
            yield name.parent.parent


def _remove_from_trackio(run_id: str) -> bool:
    """The rows of the run in each table that has a column for its name."""
    removed = 0
    for file in (folder() / "trackio").glob("*.db"):
        with contextlib.closing(sqlite3.connect(file, timeout=BUSY_S)) as database, database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (table,) in tables.fetchall():
                if not NAME.fullmatch(table):
                    continue
                columns = database.execute(f"PRAGMA table_info({table})").fetchall()
                if any(column[1] == "run_name" for column in columns):
                    deleted = database.execute(f"DELETE FROM {table} WHERE run_name = ?", (run_id,))
                    removed += deleted.rowcount
    return removed > 0


REMOVE: dict[str, Callable[[str], bool]] = {
    "tensorboard": lambda run_id: _remove_folders((folder() / "tensorboard").glob(run_id)),
    # offline-run-DATE-ID, one for each attempt
    "wandb": lambda run_id: _remove_folders((folder() / "wandb").glob(f"wandb/*run-*-{run_id}")),
    "mlflow": lambda run_id: _remove_folders(_of_mlflow(run_id)),
    "trackio": _remove_from_trackio,
}
