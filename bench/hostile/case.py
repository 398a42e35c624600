"""One bad input, and how bad inputs are made of good ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """`act` puts the input to the lab. `expected`: "refused" (a LabError), "accepted", or "either"
    where a changed input may have stayed a good one; it must not raise anything else."""

    kind: str
    name: str
    act: Callable[[], object]
    expected: str = "refused"
    ready: Callable[[], object] = bool  # done before the clock of the case starts


class WronglyTaken(Exception):
    """The input was taken, or left something behind, in a way that `act` has noticed itself."""


def nested(depth: int) -> Any:
    """A list of lists of lists …"""
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**400, -(2**63), 1e308, -1e-308, float("nan"), float("inf"), "",
    " ", "x", "x" * 5000, "\x00", "\x1b[2J", "\u202e", "\ud800", "../../etc/passwd", "NaN", "auto",
    [], [[]], [None], ["x", 5], {}, {"a": {}}, {"name": []}, nested(40), nested(600),
)  # fmt: skip
PIECES = (
    b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"\x00", b"\xff", b"\r", b"\n", b"\t", b"'",
    b"1e999", b"NaN", b"-Infinity", b"\\ud800", b"\xe2\x80\xae", b"\xef\xbb\xbf", b"9" * 5000,
    b"[" * 700, b'{"a":' * 700,
)  # fmt: skip


def garbled(chance: random.Random, value: dict[str, Any]) -> dict[str, Any]:
    """A copy of a JSON object in which one to three parts are something odd, gone, or new."""
    changed = {key: dict(item) if isinstance(item, dict) else item for key, item in value.items()}
    for _ in range(chance.randint(1, 3)):
        parts = [changed, *(item for item in changed.values() if isinstance(item, dict))]
        part = chance.choice(parts)
        key = chance.choice([*part, "new"])
        if chance.random() < 0.2:
            part.pop(key, None)
        else:
            part[key] = chance.choice(ODD)
    return changed


def damaged(chance: random.Random, data: bytes) -> bytes:
    """A copy of `data` with a few bits, bytes or pieces changed, as disks and people do it."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        size = chance.choice((1, 1, 2, 16, 200))
        kind = chance.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[at : at + size]
        elif kind == 2:
            changed[at:at] = changed[at : at + size]
        elif kind == 3:
            changed[at:at] = chance.choice(PIECES)
        elif chance.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def some_of(chance: random.Random, cases: list[Case], count: int) -> list[Case]:
    """`count` of the cases, good ones among them, in their order."""
    if count >= len(cases):
        return cases
    controls = [case for case in cases if case.expected == "accepted"][: max(1, count // 8)]
    others = [case for case in cases if case not in controls]
    chosen = chance.sample(others, min(len(others), count - len(controls)))
    return [case for case in cases if case in chosen or case in controls]


def filled(
    chance: random.Random, written: list[Case], count: int, more: Callable[[int], Case]
) -> list[Case]:
    """`count` cases: at most two thirds of them written by hand, the others from `more`."""
    chosen = some_of(chance, written, max(1, 2 * count // 3))
    return chosen + [more(i) for i in range(count - len(chosen))]
