"""Races that come with the lab, each a file in `assets/races`: what it asks, its contestants, and
the claims that its outcome is held against."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lab.atomic_files import read_object
from lab.compare.race import RaceContestant
from lab.compare.race_file import ClaimTest
from lab.dataclass_json import read
from lab.errors import LabError
from lab.paths import ASSETS
from lab.schema import quote

READY = re.compile(r"[a-z0-9-]{1,60}", re.ASCII)


@dataclass(frozen=True)
class ReadyRace:
    """`budget` as `Budget.parse` takes it; `spec`: what all contestants share; `position`: in the
    list, whose first ones a person sees as cards: the questions of most people come first."""

    name: str = ""
    title: str = ""
    question: str = ""
    budget: str = ""
    seeds: int = 2
    ladder: int = 0
    spec: Mapping[str, Any] = field(default_factory=dict)
    contestants: tuple[RaceContestant, ...] = ()
    tests: tuple[ClaimTest, ...] = ()
    score_set: str = ""
    score_most: int = 50
    position: int = 100

    @property
    def claims(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(test.claim for test in self.tests))


@cache
def all_ready() -> tuple[ReadyRace, ...]:
    """By their positions, then by their files' names."""
    files = sorted((ASSETS / "races").glob("*.json"))
    races = [read(ReadyRace, {**(read_object(file) or {}), "name": file.stem}) for file in files]
    valid = [race for race in races if race is not None]
    return tuple(sorted(valid, key=lambda race: race.position))


def of_claim(claim: str) -> list[ReadyRace]:
    """The races that test a claim."""
    return [race for race in all_ready() if claim in race.claims]


def get(name: str) -> ReadyRace:
    """Raises LabError for a name that is none."""
    ready = next((race for race in all_ready() if race.name == name), None)
    if ready is None:
        known = ", ".join(race.name for race in all_ready())
        raise LabError(f"There is no ready race '{quote(name)}'.", f"Choose one of: {known}.")
    return ready
