"""What still fits a device, and what makes a run fit: answers of the preflight process, and their
JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lab.dataclass_json import read


@dataclass(frozen=True)
class FitLimits:
    """What still fits a device, one thing changed at a time; 0 or "" where not even the least."""

    longest_row: int = 0
    largest_batch: int = 0
    largest_model: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> FitLimits:
        return read(FitLimits, stored) or FitLimits()


@dataclass(frozen=True)
class Saving:
    """A change that makes a run smaller, by dotted keys; `keeps_effective_batch`: whether the rows
    of an optimizer step, and so the training, stay the same."""

    title: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    keeps_effective_batch: bool = True
    peak_bytes: int = 0
    saves_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Saving:
        return read(Saving, stored) or Saving()
