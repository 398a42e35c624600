"""The checkpoints of a run as folders: which there are, which a person keeps. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab.atomic_files import finite_number, read_object, remove_tree, size_of, write_json
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs.status import status

PREFIX = "step-"


def listing(folder: Path) -> list[Path]:
    """The checkpoint folders by step, oldest first; whether they are valid is not looked at."""
    if not folder.is_dir():
        return []
    folders = [
        path
        for path in folder.iterdir()
        if path.name.startswith(PREFIX) and path.name[len(PREFIX) :].isdecimal() and path.is_dir()
    ]
    return sorted(folders, key=step_of)


def step_of(path: Path) -> int:
    return int(path.name[len(PREFIX) :])


def pinned(run: RunDir) -> frozenset[int]:
    """The steps that a person wants kept, whatever the spec says."""
    steps = (read_object(run.pins) or {}).get("steps")
    if not isinstance(steps, list):
        return frozenset()
    return frozenset(
        step for step in steps if isinstance(step, int) and finite_number(step) is not None
    )


@dataclass(frozen=True)
class SavedCheckpoint:
    step: int
    bytes: int
    eval_loss: float | None
    pinned: bool


def table(run: RunDir) -> list[SavedCheckpoint]:
    """Every checkpoint of a run, the first first."""
    pins = pinned(run)
    return [
        SavedCheckpoint(
            step_of(path),
            size_of(path),
            finite_number((read_object(path / "state.json") or {}).get("eval_loss")),
            step_of(path) in pins,
        )
        for path in listing(run.checkpoints)
    ]


def pin(run: RunDir, step: int, keep: bool = True) -> None:
    """Keep a checkpoint (or no longer). Raises LabError if there is none of that step."""
    _existing(run, step)
    pins = pinned(run) | {step} if keep else pinned(run) - {step}
    write_json(run.pins, {"v": 1, "steps": sorted(pins)})


def delete(run: RunDir, step: int) -> None:
    """Remove one checkpoint of a run that has ended. Raises LabError for a pinned one, and while
    the run works or waits: its worker owns its checkpoints, and begins with the newest."""
    path = _existing(run, step)
    if step in pinned(run):
        raise LabError(f"The checkpoint of step {step} is pinned.", "Unpin it first.")
    now = status(run)
    if not now.has_ended:
        raise LabError(
            f"{run.id} is {now.state}.", "Stop it first; the worker owns its checkpoints."
        )
    remove_tree(path)


def _existing(run: RunDir, step: int) -> Path:
    path = run.checkpoints / f"{PREFIX}{step}"
    if not path.is_dir():
        steps = ", ".join(str(step_of(folder)) for folder in listing(run.checkpoints)) or "none"
        raise LabError(f"{run.id} has no checkpoint of step {step}.", f"Available: {steps}.")
    return path
