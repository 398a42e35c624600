"""How the state of a run looks: its colour, icon and progress."""

from __future__ import annotations

from lab.formatting import duration
from lab.runs.status import Status

COLOURS = {
    "done": "green",
    "stopped": "orange",
    "cancelled": "gray",
    "failed": "red",
    "crashed": "red",
    "stalled": "red",
    "queued": "gray",
}
ICONS = {
    "done": "check_circle",
    "stopped": "pause_circle",
    "cancelled": "cancel",
    "failed": "error",
    "crashed": "error",
    "stalled": "hourglass_disabled",
    "queued": "schedule",
}


def colour(state: str) -> str:
    return COLOURS.get(state, "blue")


def icon(state: str) -> str:
    return f":material/{ICONS.get(state, 'play_circle')}:"


def progress(status: Status) -> str:
    """ "training · step 12 of 60 · 1 min 20 s left"."""
    parts = [status.phase or status.state]
    if status.note:
        parts.append(status.note)
    elif status.total:
        parts.append(f"{status.unit} {status.done:,.0f} of {status.total:,.0f}")
    if status.eta_s is not None and (status.note or status.state == "training"):
        parts.append(f"{duration(status.eta_s)} left")
    return " · ".join(parts)
