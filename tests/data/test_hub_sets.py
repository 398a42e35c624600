"""What is said of a set of the Hub while it is fetched, stopped and removed, without a network."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import paths
from lab.data import hub, hub_fetch
from lab.data.hub import FetchState
from lab.errors import LabError


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (FetchState(), "0 rows so far"),
        (FetchState(bytes=1_200_000, total_bytes=4_000_000), "1.20 MB of 4.00 MB"),
        (
            FetchState(bytes=1_200_000, total_bytes=4_000_000, bytes_per_s=2e6),
            "1.20 MB of 4.00 MB, 2.00 MB/s",
        ),
        (FetchState(rows=12_000, total=50_000, bytes=9, total_bytes=9), "12,000 rows of 50,000"),
        (FetchState(rows=12_000), "12,000 rows"),
    ],
)
def test_how_far_a_fetch_is(state: FetchState, words: str) -> None:
    assert state.progress == words


def test_a_fetch_is_stopped_with_what_has_come_and_only_then_removed(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, sent = hub.parse("org/name"), []
    paths.make_folder(hub.folder())
    hub.note(wanted, "fetching", bytes=1_200_000, total_bytes=4_000_000)

    def send(process: Any, number: int) -> bool:
        sent.append((process["pid"], number))
        return True

    monkeypatch.setattr(hub.process, "send", send)
    with pytest.raises(LabError, match="'org/name' is being fetched"):
        hub.remove(wanted)
    with pytest.raises(LabError, match=r"is still being fetched \(1\.20 MB of 4\.00 MB\)"):
        hub.file_of(wanted)
    hub.stop_fetch(wanted)
    state = hub.state_of(wanted)
    assert (state.state, sent) == ("failed", [(os.getpid(), signal.SIGTERM)])
    assert state.message == "Fetching 'org/name' was stopped (1.20 MB of 4.00 MB)."
    hub.stop_fetch(wanted)
    assert len(sent) == 1, "nothing is left to be stopped"
    hub.remove(wanted)
    assert not wanted.record.exists()


def test_rows_need_room_beside_the_files_that_they_come_from(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packed byte may be four of JSON."""
    paths.make_folder(hub.folder())
    files: list[Any] = [SimpleNamespace(size=600_000_000), SimpleNamespace(size=400_000_000)]
    for free, fits in ((5_000_000_000, True), (4_990_000_000, False)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(hub_fetch.shutil, "disk_usage", lambda folder, usage=usage: usage)
        if fits:
            hub_fetch._check_room(files, hub.parse("org/name"))
        else:
            with pytest.raises(LabError, match=r"may need 5\.00 GB in .*, 4\.99 GB are free"):
                hub_fetch._check_room(files, hub.parse("org/name"))
