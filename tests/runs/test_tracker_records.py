"""What a deleted run leaves in other trackers, and whose records stay."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from lab.runs import tracker_records

GONE, OTHER = "20261122-101530-lora-aaaa", "20261122-101530-lora-aaab"
PLACES = {  # by tracker: where a run's records lie below its folder
    "tensorboard": "{run}/events.out",
    "wandb": "wandb/offline-run-20261122_101530-{run}/run.wandb",
    "mlflow": "0/{run}-hex/tags/mlflow.runName",
}


def write(tracker: str, run_id: str) -> Path:
    file = tracker_records.folder() / tracker / PLACES[tracker].format(run=run_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(run_id)
    return file


@pytest.mark.parametrize("tracker", list(PLACES))
def test_only_the_records_of_the_run_go(tracker: str, lab_home: Path) -> None:
    gone, other = write(tracker, GONE), write(tracker, OTHER)
    assert tracker_records.remove(GONE, [tracker]) == []
    assert not gone.exists() and other.read_text() == OTHER
    (note,) = tracker_records.remove(GONE, [tracker])
    assert tracker in note and "delete them there" in note


def test_every_attempt_of_a_run_goes_from_wandb(lab_home: Path) -> None:
    first = write("wandb", GONE)
    again = first.parent.with_name(f"run-20261123_101530-{GONE}")
    again.mkdir()
    assert tracker_records.remove(GONE, ["wandb"]) == []
    assert not first.parent.exists() and not again.exists()


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_link_is_removed_and_not_what_it_leads_to(
    tracker: str, lab_home: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("mine")
    folder = write(tracker, GONE).parent
    (folder / PLACES[tracker].rpartition("/")[2]).unlink()
    folder.rmdir()
    folder.symlink_to(elsewhere)
    assert tracker_records.remove(GONE, [tracker]) == []
    assert not folder.is_symlink() and (elsewhere / "thesis.txt").read_text() == "mine"


def test_rows_of_the_run_go_from_trackio_and_what_cannot_be_read_is_told(lab_home: Path) -> None:
    folder = tracker_records.folder() / "trackio"
    folder.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(folder / "lab.db")) as database, database:
        database.execute("CREATE TABLE metrics (run_name TEXT, step INTEGER)")
        database.executemany("INSERT INTO metrics VALUES (?, 1)", [(GONE,), (OTHER,), (GONE,)])
    assert tracker_records.remove(GONE, ["trackio"]) == []
    with contextlib.closing(sqlite3.connect(folder / "lab.db")) as database:
        assert database.execute("SELECT run_name FROM metrics").fetchall() == [(OTHER,)]
    (folder / "broken.db").write_text("no database" * 100)
    board = write("tensorboard", GONE)
    (note,) = tracker_records.remove(GONE, ["trackio", "tensorboard"])
    assert f"The records of {GONE} in trackio could not be removed" in note
    assert not board.exists(), "one tracker that fails spares no other"
