"""What lists need to know of each run, kept for runs that have ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lab import paths, schema
from lab.atomic_files import file_identity, part, read_object, size_of, write_json
from lab.errors import SpecError
from lab.paths import RunDir
from lab.recent import Recent
from lab.runs import colours, record_reader
from lab.runs.result import Result, TrainingSummary, read_result
from lab.runs.status import Status, status
from lab.schema import option

MAX_NAME_CHARS = 120


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs."""

    id: str
    name: str
    tags: tuple[str, ...]
    notes: str
    is_archived: bool
    method: str
    method_options: dict[str, Any]  # as the spec has them, the name included
    model: str
    dataset: str
    created: float
    status: Status
    summary: TrainingSummary
    colour: str


Key = tuple[str, tuple[tuple[int, ...], ...]]
_ended_runs: Recent[Key, RunSummary] = Recent(20_000)


def entry(run: RunDir) -> RunSummary:
    """The run's line. An ended run is read once, until a file that the line rests on changes:
    where a run is copied into the folder, its result may be there before its spec."""
    files = (run.result, run.labels, run.spec, run.events)
    identities = tuple(map(file_identity, files))
    key = (str(run.path), identities)
    is_result_there = bool(identities[0])
    cached = _ended_runs.get(key) if is_result_there else None
    if cached is not None:
        return cached
    summary = _read(run)
    if is_result_there and summary.status.has_ended:
        _ended_runs.put(key, summary)
    return summary


def entries() -> list[RunSummary]:
    """All runs, newest first."""
    return [entry(run) for run in paths.all_runs()]


def unused_name(name: str) -> str:
    """`name`, or "NAME 2" where another run has it: lists could not tell the two apart."""
    used = {entry.name for entry in entries()}
    copy_number, new = 2, name
    while new in used:
        new, copy_number = f"{name[:110]} {copy_number}", copy_number + 1
    return new


def active_runs() -> list[RunDir]:
    """Runs with a live worker, newest first."""
    return [run for run in paths.all_runs() if entry(run).status.is_active]


def unfinished_runs() -> list[RunDir]:
    """Those and the ones that wait, newest first: a short run may begin and end between two
    looks."""
    return [run for run in paths.all_runs() if not entry(run).status.has_ended]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a person writes on a run afterwards. The spec stays as it was."""

    name: str = option(
        "", "Name", "Display name of the run.", max_characters=MAX_NAME_CHARS, forbid="/\\"
    )
    tags: str = option("", "Tags", "Comma-separated tags to find the run by.", max_characters=400)
    notes: str = option(
        "", "Notes", "Your own notes on the run.", multiline=True, max_characters=20_000
    )
    archived: bool = option(False, "Archived", "Hide the run from the list.")
    colour: str = option(
        "",
        "Colour",
        "Of the run's curves and dots. Empty: one that its ID decides.",
        choices=("", *colours.NAMES),
    )


def update_labels(run: RunDir, **changes: Any) -> None:
    """Write name, tags, notes or archived on a run. Raises SpecError for what cannot be."""
    problems: list[Any] = []
    stored = read_object(run.labels) or {}
    known = {key: value for key, value in stored.items() if key in asdict(Labels())}
    labels = schema.parse(Labels, known | changes, "", problems)
    if problems:
        raise SpecError(problems)
    write_json(run.labels, {"v": 1, **asdict(labels)})


def disk(run: RunDir) -> dict[str, int]:
    """Bytes on disk by kind: result, checkpoints, exports, and the records of the run."""
    sizes = {
        "result": size_of(run.artifact),
        "checkpoints": size_of(run.checkpoints),
        "exports": size_of(run.exports),
    }
    return sizes | {"records": size_of(run.path) - sum(sizes.values())}


def rename(run: RunDir, name: str) -> None:
    update_labels(run, name=name.strip())


def _read(run: RunDir) -> RunSummary:
    spec = read_object(run.spec) or {}
    stored = read_object(run.labels) or {}
    known = {key: value for key, value in stored.items() if key in asdict(Labels())}
    labels = schema.parse(Labels, known, "", [])
    result = read_result(run) or Result()
    return RunSummary(
        id=run.id,
        name=labels.name or str(spec.get("name") or "")[:MAX_NAME_CHARS],
        tags=tuple(tag.strip() for tag in labels.tags.split(",") if tag.strip()),
        notes=labels.notes,
        is_archived=labels.archived,
        method=str(part(spec, "method").get("name", "")),
        method_options=part(spec, "method"),
        model=str(spec.get("model", "")),
        dataset=str(part(spec, "data").get("dataset", "")),
        created=record_reader.created(run, spec),
        status=status(run),
        summary=result.summary,
        colour=colours.colour_of(run),
    )
