"""Datasets of the hub that a command needs: to start a run is to ask for its data."""

from __future__ import annotations

from typing import Any

from lab.cli.console import say
from lab.data import catalog, hub, hub_fetch


def fetch_missing(spec: dict[str, Any]) -> None:
    """Fetch the sets that `spec` names and that are not on this machine. Raises LabError."""
    for dataset_id in catalog.hub_datasets(spec).values():
        wanted = hub.parse(dataset_id)
        if not wanted.file.is_file():
            say(f"Fetching {wanted} from the Hub ...", error=True)
            hub_fetch.fetch(wanted)
        if note := hub.split_note(wanted):
            say(note, error=True)
