"""Room on the disks for a run and for what it has still to download."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.forecasts import DiskForecast, Forecast
from lab.hub.progress import DownloadForecast
from lab.preflight import disk_check

FREE = disk_check.DISK_RESERVE + 10**9


@pytest.mark.parametrize(
    ("own", "fetched", "field"),
    [
        (600_000_000, 400_000_000, None),
        (600_000_000, 400_000_001, "train.save_steps"),  # one disk holds both
        (10**9 + 1, 0, "train.save_steps"),
        (0, 10**9 + 1, "model"),
    ],
)
def test_files_and_a_download_share_the_disk(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch, own: int, fetched: int, field: str | None
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=FREE))
    download = DownloadForecast(bytes=fetched, folder=str(lab_home / "hub")) if fetched else None
    problems = disk_check.problems(Forecast(disk=DiskForecast(total=own), download=download))
    assert [problem.field for problem in problems] == ([field] if field else [])
