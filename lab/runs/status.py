"""The one place that decides what state a run is in."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from lab.files import read_object
from lab.paths import RunDir
from lab.runs import deadlines, process
from lab.runs.deadlines import number as _number

STALLED_S = 60.0
ENDED = ("done", "stopped", "cancelled", "failed", "crashed", "deleted")
ACTIVE = ("starting", "training", "evaluating", "saving", "stopping", "stalled")
RESUMABLE = ("stopped", "failed", "crashed", "cancelled")


@dataclass(frozen=True)
class Status:
    """A run's state, and how far it is. `eta_s` is None where nothing can be said yet."""

    state: str
    phase: str = ""
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    eta_s: float | None = None
    message: str = ""
    hint: str = ""

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def fraction(self) -> float:
        return min(1.0, max(0.0, self.done / self.total)) if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def status(run: RunDir) -> Status:
    """Result file first, else alive by pid and start time, else queued, else ended by the lab, else
    crashed."""
    result = read_object(run.result)
    if result is not None and result.get("state") in ENDED:
        return Status(
            state=str(result["state"]),
            phase="ended",
            message=str(result.get("message", "")),
            hint=str(result.get("hint", "")),
        )
    if not run.path.is_dir():
        return Status("deleted", message="The run directory is gone.")
    if not run.process.exists():
        return Status("queued", message=_why_queued(run))
    beat = read_object(run.heartbeat) or {}
    eta_s = _number(beat.get("eta_s"))
    progress: dict[str, Any] = {
        "phase": str(beat.get("phase", "starting")),
        "done": _number(beat.get("done")),
        "total": _number(beat.get("total")),
        "unit": str(beat.get("unit", "")),
    }
    if not process.is_alive(read_object(run.process)):
        if read_object(run.result) is not None:  # it ended between the two looks
            return status(run)
        killed = deadlines.forced_end(run)
        if killed is not None:
            message, hint = str(killed.get("message", "")), str(killed.get("hint", ""))
            return Status(str(killed["state"]), **progress, message=message, hint=hint)
        if (run.commands / "cancel").exists():
            return Status("cancelled", **progress, message="Its worker is gone without a result.")
        return Status(
            "crashed",
            **progress,
            message="The worker is gone without a result: killed, out of memory, or a power cut.",
            hint="Resume it; it goes on from its newest valid checkpoint.",
        )
    age = _age(run, beat)
    if age is not None and age > STALLED_S:
        return Status(
            "stalled",
            **progress,
            message=f"The worker lives but has not been heard for {age:.0f} s.",
            hint="Wait if the machine is overloaded; otherwise cancel and resume.",
        )
    state = (
        progress["phase"]
        if progress["phase"] in ("training", "evaluating", "saving")
        else "starting"
    )
    message = ""
    if any((run.commands / name).exists() for name in ("kill", "cancel")):
        state = "stopping"
    elif (run.commands / "stop").exists():
        state, message = "stopping", deadlines.stopping(beat)
    return Status(state, **progress, eta_s=eta_s or None, message=message)


def _why_queued(run: RunDir) -> str:
    """What the supervisor wrote about a waiting run."""
    state = read_object(run.path.parent.parent / "queue" / "state.json") or {}
    waiting = state.get("waiting")
    return str(waiting.get(run.id, "")) if isinstance(waiting, dict) else ""


def _age(run: RunDir, beat: dict[str, Any]) -> float | None:
    """Seconds since the last heartbeat, or since the start where there was none. The worker's own
    times count: those of the files say when they were copied here."""
    said = _number(beat.get("time")) or _number((read_object(run.process) or {}).get("time"))
    return time.time() - said if said else None
