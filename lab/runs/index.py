"""What lists need to know of each run, kept for runs that have ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from lab import paths
from lab.files import read_object, write_json
from lab.paths import RunDir
from lab.runs.live import is_number
from lab.runs.status import Status, status

LONGEST_NAME = 120


@dataclass(frozen=True)
class Entry:
    """One line of the list of runs."""

    id: str
    name: str
    method: str
    model: str
    dataset: str
    created: float
    status: Status
    summary: dict[str, Any]


_ended: dict[tuple[str, int, int], Entry] = {}
_lock = threading.Lock()


def entry(run: RunDir) -> Entry:
    """The run's line. An ended run is read once, until its result or its labels change."""
    key = _key(run)
    with _lock:
        kept = _ended.get(key) if key else None
    if kept is not None:
        return kept
    made = _read(run)
    if key and made.status.has_ended:
        with _lock:
            if len(_ended) > 20_000:
                _ended.clear()
            _ended[key] = made
    return made


def entries() -> list[Entry]:
    """All runs, newest first."""
    return [entry(run) for run in paths.all_runs()]


def active_runs() -> list[RunDir]:
    """The runs whose workers are at it, newest first."""
    return [run for run in paths.all_runs() if entry(run).status.is_active]


def rename(run: RunDir, name: str) -> None:
    """Give the run another name. The spec stays as it was; `labels.json` holds the new one."""
    from lab.errors import SpecError
    from lab.spec import RunSpec

    problems: list[Any] = []
    RunSpec.parse({"name": name}, problems)
    if problems:
        raise SpecError(problems)
    labels = read_object(run.path / "labels.json") or {}
    write_json(run.path / "labels.json", labels | {"name": name.strip()})


def _key(run: RunDir) -> tuple[str, int, int] | None:
    try:
        result = run.result.stat().st_mtime_ns
    except OSError:
        return None
    try:
        labels = (run.path / "labels.json").stat().st_mtime_ns
    except OSError:
        labels = 0
    return str(run.path), result, labels


def _read(run: RunDir) -> Entry:
    spec = read_object(run.spec) or {}
    labels = read_object(run.path / "labels.json") or {}
    result = read_object(run.result) or {}
    method, data = spec.get("method"), spec.get("data")
    summary = result.get("summary")
    try:
        created = run.spec.stat().st_mtime
    except OSError:
        created = 0.0
    return Entry(
        id=run.id,
        name=str(labels.get("name") or spec.get("name") or ""),
        method=str(method.get("name", "")) if isinstance(method, dict) else "",
        model=str(spec.get("model", "")),
        dataset=str(data.get("dataset", "")) if isinstance(data, dict) else "",
        created=created,
        status=status(run),
        summary=_numbers(summary),
    )


def _numbers(summary: Any) -> dict[str, Any]:
    """The figures of a result; the file may hold anything."""
    if not isinstance(summary, dict):
        return {}
    return {key: value for key, value in summary.items() if is_number(value)}
