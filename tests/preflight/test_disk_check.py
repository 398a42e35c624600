"""Room on the disks for a run and for what it has still to download."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


def test_a_cache_on_another_disk_takes_nothing_from_that_of_the_run(
    lab_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"

    def existing(folder: Path) -> Any:
        number = int(folder == cache)
        return SimpleNamespace(number=number, stat=lambda: SimpleNamespace(st_dev=number))

    free = [FREE, FREE]
    monkeypatch.setattr(disk_check, "_existing", existing)
    monkeypatch.setattr(shutil, "disk_usage", lambda disk: SimpleNamespace(free=free[disk.number]))

    def problems_of(own: int, fetched: int) -> list[tuple[str, str]]:
        download = DownloadForecast(bytes=fetched, folder=str(cache))
        forecast = Forecast(disk=DiskForecast(total=own), download=download)
        return [(each.field, each.message) for each in disk_check.problems(forecast)]

    assert problems_of(10**9, 10**9) == []
    free[1] -= 1
    ((field, message),) = problems_of(5 * 10**8, 10**9)
    assert field == "model" and f"1.00 GB are still to be downloaded to {cache}" in message
    free[:] = [FREE - 10**7, 10**12]
    ((field, message),) = problems_of(10**9, 10**9)
    assert field == "train.save_steps" and "to download" not in message
    assert f"may need 1.00 GB in {lab_home}, 0.99 GB are free" in message


def test_a_download_on_the_same_disk_is_named_beside_the_run(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=FREE))
    download = DownloadForecast(bytes=400_000_000, folder=str(lab_home / "hub"))
    forecast = Forecast(disk=DiskForecast(total=700_000_000), download=download)
    (problem,) = disk_check.problems(forecast)
    assert "may need 0.70 GB in" in problem.message
    assert "beside 400.00 MB to download, 1.00 GB are free" in problem.message
