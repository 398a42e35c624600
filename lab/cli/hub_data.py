"""Datasets of the hub that a command needs: to start a run is to ask for its data."""

from __future__ import annotations

from typing import Any

from lab.atomic_files import part
from lab.cli.console import say
from lab.data import catalog, hub, hub_fetch

# of the section data, some also by the names that they had in earlier versions
FIELDS = ("dataset", "eval_dataset", "held_out", "general_dataset", "general_set")


def fetch_missing(spec: dict[str, Any]) -> None:
    """Fetch the sets that `spec` names and that are not on this machine. Raises LabError."""
    data = part(spec, "data")
    for name in FIELDS:
        dataset_id = data.get(name)
        if isinstance(dataset_id, str) and catalog.is_on_hub(dataset_id):
            wanted = hub.parse(dataset_id)
            if not wanted.file.is_file():
                say(f"Fetching {wanted} from the Hub ...", error=True)
                hub_fetch.fetch(wanted)
            if note := hub.split_note(wanted):
                say(note, error=True)
