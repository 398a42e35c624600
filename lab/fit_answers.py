"""What still fits a device, and what makes a run fit: answers of the preflight process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FitLimits:
    """What still fits a device, one thing changed at a time; 0 or "" where not even the least."""

    longest_row: int = 0
    largest_batch: int = 0
    largest_model: str = ""


@dataclass(frozen=True)
class Saving:
    """A change that makes a run smaller, by dotted keys; `keeps_effective_batch`: whether the rows
    of an optimizer step, and so the training, stay the same."""

    title: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    keeps_effective_batch: bool = True
    peak_bytes: int = 0
    saves_bytes: int = 0
