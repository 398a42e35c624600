"""The one place that decides what state a run is in."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from lab import process
from lab.atomic_files import finite_number, part, read_object
from lab.paths import RunDir
from lab.runs import deadlines
from lab.runs.heartbeat import Heartbeat, read_heartbeat
from lab.runs.result import forced_end, read_result

STALLED_S = 60.0
MAX_MESSAGE_CHARS = 20_000  # characters of a message
ENDED = ("done", "stopped", "cancelled", "failed", "crashed", "deleted")
ACTIVE = ("starting", "training", "evaluating", "saving", "stopping", "stalled")
STATE_OF_PHASE = {
    "training": "training",
    "evaluating": "evaluating",
    "sampling": "evaluating",
    "saving": "saving",
}
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
    note: str = ""  # what the phase says of itself: files and speed of a download
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
    ended = _ended(run)
    if ended is not None:
        return ended
    if not run.path.is_dir():
        return Status("deleted", message="The run directory is gone.")
    if not run.process.exists():
        # what the supervisor wrote about a waiting run
        queue_state = read_object(run.path.parent.parent / "queue" / "state.json")
        return Status("queued", message=_words(part(queue_state, "waiting").get(run.id)))
    beat = read_heartbeat(run) or Heartbeat()
    progress: dict[str, Any] = {
        "phase": _words(beat.phase),
        "done": max(0.0, beat.done),
        "total": max(0.0, beat.total),
        "unit": _words(beat.unit),
        "note": _words(beat.note),
    }
    if not process.is_alive(read_object(run.process)):
        ended = _ended(run)  # between the two looks
        if ended is not None:
            return ended
        killed = forced_end(run)
        if killed is not None:
            message, hint = _words(killed.message), _words(killed.hint)
            return Status(killed.state, **progress, message=message, hint=hint)
        if (run.commands / "cancel").exists():
            return Status("cancelled", **progress, message="Its worker is gone without a result.")
        return Status(
            "crashed",
            **progress,
            message=(
                "The worker ended without a result: it was killed, ran out of memory, or the "
                "machine lost power."
            ),
            hint="Resume it to continue from the latest valid checkpoint.",
        )
    age = _age(run, beat)
    if age is not None and age > STALLED_S:
        return Status(
            "stalled",
            **progress,
            message=f"The worker is running but has not reported for {age:.0f} s.",
            hint="Wait if the machine is overloaded; otherwise cancel and resume.",
        )
    state = STATE_OF_PHASE.get(progress["phase"], "starting")
    message = ""
    if any((run.commands / name).exists() for name in ("kill", "cancel")):
        state = "stopping"
    elif (run.commands / "stop").exists():
        state, message = "stopping", deadlines.stopping(beat)
    return Status(state, **progress, eta_s=beat.eta_s or None, message=message)


def _ended(run: RunDir) -> Status | None:
    """The state that the result names; None without a result, or for one that names none."""
    result = read_result(run)
    if result is None or result.state not in ENDED:
        return None
    words = _words(result.message), _words(result.hint)
    return Status(result.state, "ended", message=words[0], hint=words[1])


def _age(run: RunDir, beat: Heartbeat) -> float | None:
    """Seconds since the last heartbeat, or since the start where there was none. The worker's own
    times count: those of the files say when they were copied here."""
    heard = beat.time or finite_number((read_object(run.process) or {}).get("time"))
    return time.time() - heard if heard else None


def _words(value: Any) -> str:
    """Text of a file that may hold anything; what is no text says nothing."""
    return value[:MAX_MESSAGE_CHARS] if isinstance(value, str) else ""
