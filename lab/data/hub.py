"""Datasets of the hub: fetched once into LAB_HOME/datasets/hub, read as files from then on.

An id is org/name, org/name:config, and with @split another split than train. Fetching streams the
rows (constant memory) into JSONL in a process of its own, `python -m lab datasets fetch ID`: it
outlives the page, and writes its progress beside the file. Nothing here imports the datasets
library until rows are fetched.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import paths, process
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.models.catalog import hub_is_reachable
from lab.paths import ASSETS
from lab.schema import quote

ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(:(?P<config>[\w.+-]{1,64}))?(@(?P<split>[\w.-]{1,64}))?",
    re.ASCII,
)
STATES = ("fetching", "done", "failed")
WAIT_S = 200.0  # that a check waits for a fetch before it says how far it is


@dataclass(frozen=True)
class HubId:
    name: str
    config: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"{self.name}{config}" + (f"@{self.split}" if self.split != "train" else "")

    @property
    def file(self) -> Path:
        stem = "--".join([*self.name.split("/"), self.config or "default", self.split])
        return paths.home() / "datasets" / "hub" / f"{stem}.jsonl"

    @property
    def record(self) -> Path:
        """Progress of a fetch, then its outcome."""
        return self.file.with_suffix(".state.json")


def is_id(text: str) -> bool:
    return ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def parse(text: str) -> HubId:
    found = ID.fullmatch(text)
    if found is None or not is_id(text):
        raise LabError(
            f"'{quote(text)}' is no hub id.",
            "Write org/name, org/name:config or org/name@split.",
        )
    return HubId(found["name"], found["config"], found["split"] or "train")


def known() -> list[dict[str, Any]]:
    """Well-known sets of the hub to choose from: id, title, license, rows, format, summary."""
    listed = read_object(ASSETS / "hub_datasets.json") or {}
    return list(listed.get("datasets", []))


def fetched() -> list[str]:
    """The ids that are on this machine."""
    folder = paths.home() / "datasets" / "hub"
    records = [read_object(path) or {} for path in sorted(folder.glob("*.state.json"))]
    ids = [one.get("id") for one in records if one.get("state") == "done"]
    # a file may have been removed by hand, a record damaged
    return [one for one in ids if isinstance(one, str) and is_id(one) and parse(one).file.is_file()]


def file_of(wanted: HubId) -> Path:
    """The file of a fetched set; one that is not here is fetched now.

    Waits for WAIT_S at most. Raises LabError if the hub cannot be reached, the fetch failed, or is
    still going on.
    """
    if wanted.file.is_file():
        return wanted.file
    start_fetch(wanted)
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if wanted.file.is_file():
            return wanted.file
        state = state_of(wanted)
        if state.get("state") == "failed":
            raise LabError(str(state.get("message")), str(state.get("hint", "")))
        time.sleep(0.2)
    raise LabError(
        f"'{wanted}' is still being fetched ({state_of(wanted)['rows']:,} rows so far).",
        "Try again when it is done; the Data page shows the progress.",
    )


def state_of(wanted: HubId) -> dict[str, Any]:
    """{"state": fetching, done, failed or "", "rows", "total", "message", "hint"} of a fetch."""
    record = read_object(wanted.record) or {}
    state = {
        "state": record.get("state") if record.get("state") in STATES else "",
        "rows": _count(record.get("rows")) or 0,
        "total": _count(record.get("total")),
        "message": str(record.get("message") or ""),
        "hint": str(record.get("hint") or ""),
    }
    if state["state"] == "done" and not wanted.file.is_file():
        return state | {"state": ""}  # its file was removed
    if state["state"] == "fetching" and not process.is_alive(record.get("process")):
        return state | {
            "state": "failed",
            "message": f"Fetching '{wanted}' was interrupted.",
            "hint": "Fetch it again.",
        }
    return state


def _count(value: Any) -> int | None:
    """A number of rows from a record, which may be damaged."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


def start_fetch(wanted: HubId, token: str | None = None) -> None:
    """Fetch in a process of its own, unless one does already. Raises LabError without a network:
    the hub's address is asked first, for two seconds at most."""
    if wanted.file.is_file() or state_of(wanted).get("state") == "fetching":
        return
    if not hub_is_reachable():
        raise LabError(
            f"The hub cannot be reached, and '{wanted}' is not on this machine yet.",
            "Connect to the network and fetch it once, or choose a built-in set or a file.",
        )
    paths.make_folder(wanted.file.parent)
    child = process.spawn(
        ["lab", "datasets", "fetch", str(wanted)],
        wanted.file.with_suffix(".log"),
        # for the child alone: this process and its other children never have it
        variables={"HF_TOKEN": token} if token else {},
    )
    _note(wanted, "fetching", pid=child.pid)


def fetch(wanted: HubId) -> Path:
    """Stream the set into its file, in this process. Raises LabError, noted in the record."""
    if wanted.file.is_file():
        return wanted.file
    paths.make_folder(wanted.file.parent)
    _note(wanted, "fetching")
    aside = wanted.file.with_name(f".tmp-{wanted.file.name}-{os.getpid()}")
    try:
        rows = _stream(wanted, aside)
        os.replace(aside, wanted.file)
    except LabError as error:
        _note(wanted, "failed", message=error.message, hint=error.hint)
        raise
    except BaseException as error:
        _note(wanted, "failed", message=f"Fetching '{wanted}' failed: {_first(error)}.", hint="")
        raise
    finally:
        aside.unlink(missing_ok=True)
    _note(wanted, "done", rows=rows)
    return wanted.file


def _stream(wanted: HubId, aside: Path) -> int:
    """Write the rows to `aside`; how many there are."""
    import datasets

    if not hub_is_reachable():
        raise LabError(
            f"The hub cannot be reached, and '{wanted}' is not on this machine yet.",
            "Connect to the network and fetch it once, or choose a built-in set or a file.",
        )
    try:
        rows = datasets.load_dataset(
            wanted.name,
            wanted.config,
            split=wanted.split,
            streaming=True,
            token=os.environ.get("HF_TOKEN") or None,
        )
        info = (getattr(rows.info, "splits", None) or {}).get(wanted.split)
        total = getattr(info, "num_examples", None)
        count, told = 0, time.monotonic()
        with aside.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=_as_text) + "\n")
                count += 1
                if time.monotonic() - told > 1:
                    told = time.monotonic()
                    _note(wanted, "fetching", rows=count, total=total)
        return count
    except LabError:
        raise
    except Exception as error:  # the hub's own words say what is wrong: gated, unknown, offline
        raise LabError(
            f"'{wanted}' cannot be fetched: {_first(error)}.",
            "Check the id, the config and the split; for a gated set accept its terms on the hub "
            "and give a token (HF_TOKEN).",
        ) from None


def _as_text(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)) or hasattr(value, "tobytes"):
        raise LabError("The set holds images, sound or other bytes.", "Choose a set of text.")
    return str(value)  # dates and the like


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _note(wanted: HubId, state: str, pid: int | None = None, **more: Any) -> None:
    record = {"v": 1, "id": str(wanted), "state": state, **more}
    record["process"] = process.identity(pid or os.getpid())
    write_json(wanted.record, record, durable=False)
