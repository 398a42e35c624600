"""Bad input through the lab's own doors: every case is refused in words, or taken if it is good.

A kind of input has cases written by hand and cases that a seeded generator makes of them. Each
says what has to come of it; what raises anything but a LabError, what takes longer than LIMIT_S,
and what is taken although it is wrong are counted. All three have to be 0.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.fault_injection import home_at
from bench.hostile.case import Case, WronglyTaken
from lab.errors import LabError

CASES = 400
LIMIT_S = 10.0
MAX_SHOWN = 20


@dataclass
class Report:
    """What came of the cases. `wrong` were taken, or refused although they are good."""

    seed: int
    cases: int = 0
    refused: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest: str = ""
    slowest_s: float = 0.0
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        return self.cases > 0 and not (self.tracebacks or self.hangs or self.wrong)

    @property
    def failures(self) -> list[str]:
        listed = [
            f"{title}: {line}"
            for title, lines in (
                ("traceback", self.tracebacks),
                ("hang", self.hangs),
                ("wrong", self.wrong),
            )
            for line in lines
        ]
        more = [f"and {len(listed) - MAX_SHOWN} more"] if len(listed) > MAX_SHOWN else []
        return listed[:MAX_SHOWN] + more


class _Hang(BaseException):
    """Raised in a case that takes too long; no handler of Exception can swallow it."""


def hostile(cases: int = CASES, seed: int = 0, tell: Callable[[str], object] = print) -> Report:
    """Put about `cases` bad inputs to a lab in a temporary home; the report."""
    from bench.hostile import archives, bodies, files, models, runs, specs

    began = time.monotonic()
    report, kinds = Report(seed), Counter[str]()
    with _alone() as name:
        for subject in (specs, files, archives, runs, models, bodies):
            chance = random.Random(f"{seed} {subject.__name__}")
            count = max(4, round(cases * subject.SHARE))
            with subject.prepared(Path(name), chance, count) as prepared:
                for case in prepared:
                    _try(case, report)
                    kinds[case.kind] += 1
            tell(f"{subject.__name__.rpartition('.')[2]}: {report.cases} cases so far")
    report.kinds = dict(kinds)
    report.seconds = time.monotonic() - began
    return report


@contextmanager
def _alone() -> Iterator[str]:
    """A temporary folder with a home of its own; nothing is asked of the network."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with tempfile.TemporaryDirectory(prefix="lab-hostile-") as name, home_at(Path(name)):
            yield name
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def _try(case: Case, report: Report) -> None:
    report.cases += 1
    name = f"{case.kind}: {case.name}"[:160]
    case.ready()
    began = time.monotonic()
    try:
        with _limit():
            case.act()
        if case.expected == "refused":
            report.wrong.append(f"{name} is taken")
    except _Hang:
        report.hangs.append(f"{name} takes more than {LIMIT_S:.0f} s")
    except WronglyTaken as error:
        report.wrong.append(f"{name}: {error}")
    except LabError as error:
        report.refused += 1
        if "did not answer" in error.message:
            report.hangs.append(f"{name}: {error.message}")
        elif case.expected == "accepted":
            report.wrong.append(f"{name} is refused: {error.message[:200]}")
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(at.filename).name}:{at.lineno}"
        report.tracebacks.append(f"{name}: {type(error).__name__}: {str(error)[:200]} ({where})")
    seconds = time.monotonic() - began
    if seconds > report.slowest_s:
        report.slowest, report.slowest_s = name, seconds


@contextmanager
def _limit() -> Iterator[None]:
    """Raise _Hang in the body when LIMIT_S are over."""

    def end(*_: Any) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
