"""The colour of a run: given when the run is made, kept with its labels, the same on every page."""

from __future__ import annotations

import zlib
from collections import Counter

from lab import paths
from lab.atomic_files import read_object
from lab.paths import RunDir

NAMES = ("blue", "orange", "violet", "green", "red", "yellow")
NEWEST = 12  # runs whose colours the next one avoids


def colour_of(run: RunDir) -> str:
    """The run's colour; for a run without a label, one that its id decides."""
    label = (read_object(run.labels) or {}).get("colour")
    return label if label in NAMES else NAMES[zlib.crc32(run.id.encode()) % len(NAMES)]


def next_colours(count: int) -> list[str]:
    """The colours of the next runs: each is the one that the newest runs before it use least."""
    newest = [colour_of(run) for run in paths.all_runs()[:NEWEST]]
    chosen: list[str] = []
    for _ in range(count):
        uses = Counter([*chosen, *newest][:NEWEST])
        chosen.insert(0, min(NAMES, key=lambda name: uses[name]))
    return chosen[::-1]


def next_colour() -> str:
    return next_colours(1)[0]
