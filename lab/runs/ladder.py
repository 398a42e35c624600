"""A run whose learning rate is chosen by short runs before it: the ladder of a race.

Whoever starts the race makes all its runs at once; this one names its probes in `ladder.json`. The
supervisor passes it by until they have ended. Then it writes the best rate into the spec, and what
it chose from into `ladder.chosen.json`, and starts the run. All of that follows from the probes'
records, so a supervisor that was killed on the way decides the same again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lab import paths
from lab.atomic_files import finite_number, part, read_object, write_json
from lab.dataclass_json import read
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.status import status

WAITING = "Waiting for the short runs that choose its learning rate."


@dataclass(frozen=True)
class Ladder:
    """`probes`: the learning rate of each probe by its run's id. `default_rate`: that of the run
    which the race has anyway; where it is the best, this run is not needed."""

    probes: Mapping[str, float] = field(default_factory=dict)
    default_rate: float = 0.0


@dataclass(frozen=True)
class LadderChoice:
    """`losses`: the final evaluation loss of each probe that is done, by its run's id."""

    rate: float = 0.0
    losses: Mapping[str, float] = field(default_factory=dict)


def write(run: RunDir, ladder: Ladder) -> None:
    write_json(run.ladder, {"v": 1, **asdict(ladder)})


def ladder_of(run: RunDir) -> Ladder | None:
    """None for a run with a rate of its own."""
    return read(Ladder, read_object(run.ladder))


def choice_of(run: RunDir) -> LadderChoice | None:
    """None until the probes have ended."""
    return read(LadderChoice, read_object(run.ladder_choice))


def is_waiting(run: RunDir) -> bool:
    """Whether a probe of the run may still get a better loss."""
    ladder = ladder_of(run)
    if ladder is None or choice_of(run) is not None:
        return False
    return not all(map(_has_ended, ladder.probes))


def _has_ended(run_id: str) -> bool:
    try:
        return status(paths.run_dir(run_id)).has_ended
    except LabError:
        return True  # deleted


def is_needless(run: RunDir) -> bool:
    """Whether the best rate is that of a run which the race has anyway."""
    ladder, choice = ladder_of(run), choice_of(run)
    return ladder is not None and choice is not None and choice.rate == ladder.default_rate


def settle(run: RunDir) -> bool:
    """Give a run that was taken out of the queue its rate. False if it has ended instead: the best
    rate is the default, or no probe has a loss."""
    ladder = ladder_of(run)
    if ladder is None:
        return True
    if choice_of(run) is not None:
        # the supervisor that chose was killed before it said so; who resumes it wants it trained
        if is_needless(run) and not run.attempts.exists():
            _end_needless(run)
            return False
        return True
    losses = {
        run_id: loss for run_id in ladder.probes if (loss := final_loss_of(run_id)) is not None
    }
    if not losses:
        _end(
            run,
            "failed",
            "None of the short runs that choose its learning rate is done.",
            "See why they ended, and start the race again.",
        )
        return False
    rate = ladder.probes[min(losses, key=lambda run_id: losses[run_id])]
    spec = read_object(run.spec) or {}
    spec["train"] = part(spec, "train") | {"learning_rate": rate}
    write_json(run.spec, spec)
    write_json(run.ladder_choice, {"v": 1, **asdict(LadderChoice(rate, losses))})
    if rate != ladder.default_rate:
        return True
    _end_needless(run)
    return False


def final_loss_of(run_id: str) -> float | None:
    """The evaluation loss at the end of a run that is done."""
    try:
        run = paths.run_dir(run_id)
    except LabError:
        return None
    if status(run).state != "done":
        return None
    evals = [e for e in record_reader.metrics(run, "eval") if e.get("of") != "base"]
    loss = finite_number(evals[-1].get("eval/loss")) if evals else None
    return None if loss is None else float(loss)


def _end_needless(run: RunDir) -> None:
    _end(run, "cancelled", "Not needed: the best rate is the one that the race trains anyway.", "")


def _end(run: RunDir, state: str, message: str, hint: str) -> None:
    result: dict[str, Any] = {"v": 1, "state": state, "message": message, "hint": hint}
    write_json(run.result, result | {"ended": time.time()})
