"""The heartbeat: what a worker says of itself once a second."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lab.atomic_files import read_object
from lab.dataclass_json import read
from lab.paths import RunDir


@dataclass(frozen=True)
class Heartbeat:
    """`time`: seconds since the epoch. `signs` counts what the main thread does; `slowest_s`: the
    longest silence between two lately; `step_s`: an optimizer step. `done` of `total` in `unit`:
    how far the phase is; `eta_s`: what is left of it. `files`, `files_done`, `bytes_per_s`, `note`
    are of a download, `text` of a sample."""

    phase: str = "starting"
    time: float | None = None
    attempt: int | None = None
    signs: int = 0
    slowest_s: float = 0.0
    step_s: float = 0.0
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    eta_s: float | None = None
    files: int | None = None
    files_done: int | None = None
    bytes_per_s: float | None = None
    note: str = ""
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def read_heartbeat(run: RunDir) -> Heartbeat | None:
    """None before the first. Of a damaged file, what can be read: it may hold anything."""
    return read(Heartbeat, read_object(run.heartbeat))
