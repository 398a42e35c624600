"""How long a command may go unanswered.

The supervisor acts on these (`lab.runs.escalation`), and `status` says them to a person.
"""

from __future__ import annotations

from lab import formatting
from lab.runs.heartbeat import Heartbeat

HEART_S = 120.0  # without a heartbeat, after which a worker that was told to stop gets a SIGTERM
QUIET_S = 600.0  # the least that its main thread may take between two signs of life
MULTIPLE = 10.0  # and how many times its slowest recent stretch between two signs it may take
CANCEL_S = 15.0  # for cancel, which has nothing to save
TERM_S = {"stop": 60.0, "cancel": 15.0}  # between SIGTERM and SIGKILL


def patience(beat: Heartbeat) -> float:
    """Seconds that the worker of this heartbeat may work in silence after *stop*."""
    return max(QUIET_S, MULTIPLE * max(beat.slowest_s, beat.step_s))


def stopping(beat: Heartbeat) -> str:
    """When a worker that was told to stop will end, in words."""
    if beat.phase == "training" and beat.step_s > 0:
        when = f"It ends after this step, about {formatting.duration(beat.step_s)}"
    elif beat.phase in ("training", "evaluating", "sampling", "saving"):
        when = "It ends as soon as it has saved its result"
    else:
        when = "It ends at the next moment that it can be interrupted"
    return (
        f"{when}. If it gives no sign of life for {formatting.duration(patience(beat))}, "
        "the lab ends it."
    )
