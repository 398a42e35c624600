"""Whether the disks have room for what a run writes, and for what it has still to download."""

from __future__ import annotations

import shutil
from pathlib import Path

from lab import formatting, paths
from lab.errors import Problem
from lab.forecasts import Forecast

DISK_RESERVE = 200_000_000


def problems(forecast: Forecast) -> list[Problem]:
    """What keeps the run from being written: its own files in LAB_HOME, and what it has to download
    first, in the cache of the hub. Where both are on one disk, both count."""
    still = forecast.download
    home, needed = _existing(paths.home()), forecast.disk.total if forecast.disk else 0
    fetched, cache = (still.bytes, Path(still.folder)) if still else (0, home)
    is_one_disk = _existing(cache).stat().st_dev == home.stat().st_dev
    room = max(0, shutil.disk_usage(_existing(cache)).free - DISK_RESERVE)
    if fetched > room:
        return [
            Problem(
                "model",
                f"not enough disk: {formatting.size(fetched)} are still to be downloaded to "
                f"{cache}, {formatting.size(room)} are free. Free some room there, or set HF_HOME "
                "to a folder on another disk.",
            )
        ]
    room = max(0, shutil.disk_usage(home).free - DISK_RESERVE)
    beside = fetched if is_one_disk else 0
    if needed + beside > room:
        more = f" beside {formatting.size(beside)} to download" if beside else ""
        return [
            Problem(
                "train.save_steps",
                f"not enough disk: the run may need {needed / 1e9:.2f} GB in {paths.home()}{more}"
                f", {room / 1e9:.2f} GB are free. Lower train.keep_best and train.keep_last, set "
                "train.save_steps to 0, or free some room.",
            )
        ]
    return []


def _existing(folder: Path) -> Path:
    """The nearest folder above that there is."""
    return next(path for path in [folder, *folder.parents] if path.exists())
