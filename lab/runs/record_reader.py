"""Read what a worker wrote: metrics and events, with one continuous history over attempts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import json_text
from lab.metrics import WORDS, is_number
from lab.paths import RunDir

LATEST = 2.0**40  # seconds since 1970 that a clock may say


def read_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """(whole records from byte `offset` on, the offset to go on from).

    An unfinished last line is left for the next call; a damaged line is passed over.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except OSError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return list(_records(data[:end])), offset + end


def _records(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            record = json_text.parse(line, unique=False)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def continuous(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The records of one kind, as if the run had never been interrupted: what a later attempt
    did again supersedes what an earlier one had written from that step on."""
    history: list[dict[str, Any]] = []
    attempt = 0
    for record in records:
        step, record_attempt = record.get("step"), record.get("attempt", 1)
        if record.get("kind") != kind or not is_number(step):
            continue
        if is_number(record_attempt) and record_attempt > attempt:
            attempt = record_attempt
            while history and history[-1]["step"] >= step:
                history.pop()
        history.append(record)
    return history


def metrics(run: RunDir, kind: str) -> list[dict[str, Any]]:
    """All records of `kind`: train and eval continuous by step, device as they came."""
    records, _ = read_lines(run.metrics)
    if kind == "device":
        matches = [record for record in records if record.get("kind") == kind]
    else:
        matches = continuous(records, kind)
    # without what should be a number and is none: the file may hold anything
    return [
        {key: value for key, value in record.items() if key in WORDS or is_number(value)}
        for record in matches
    ]


def events(run: RunDir, kind: str | None = None) -> list[dict[str, Any]]:
    records, _ = read_lines(run.events)
    return [record for record in records if kind is None or record.get("kind") == kind]


def last_event(run: RunDir, kind: str) -> dict[str, Any]:
    """The newest event of a kind, or an empty record."""
    matches = events(run, kind)
    return matches[-1] if matches else {}


def created(run: RunDir, spec: dict[str, Any]) -> float:
    """When the run was created, in seconds since 1970: what its spec says, else its first event,
    else the time in its id. Never the time of a file, which says when it was copied here."""
    try:
        with run.events.open("rb") as file:
            first = next(_records(file.read(4096).partition(b"\n")[0]), {})
    except OSError:
        first = {}
    for moment in (spec.get("created"), first.get("time")):
        if isinstance(moment, (int, float)) and 0 < moment < LATEST:
            return float(moment)
    try:
        return time.mktime(time.strptime(run.id[:15], "%Y%m%d-%H%M%S"))
    except (ValueError, OverflowError):
        return 0.0


def base_loss(run: RunDir) -> float | None:
    """The evaluation loss of the untouched base, once it has been measured."""
    for record in metrics(run, "eval"):
        value = record.get("eval/loss")
        if record.get("of") == "base" and value is not None:
            return float(value)
    return None


def tail(path: Path, size: int = 64_000) -> str:
    """The end of a text file, from the start of a line."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - size))
            data = file.read()
    except OSError:
        return ""
    if end > size:
        data = data[data.find(b"\n") + 1 :]
    return data.decode("utf-8", errors="replace")
