"""The shipped model configs: architectures without weights, for estimates.

Each file of assets/models holds an architecture as transformers reads it, the exact number of
parameters, where both come from, and the licence of the weights that it describes.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from lab.errors import LabError
from lab.paths import ASSETS
from lab.schema import quote


@dataclass(frozen=True)
class ShippedConfig:
    name: str
    parameters: int
    license: str
    hub_id: str  # of the weights that people fine-tune, the instruct ones where there are any
    source: tuple[str, ...]
    config: dict[str, Any]

    @property
    def id(self) -> str:
        return f"config:{self.name}"

    @property
    def context(self) -> int | None:
        """Positions that the model was made for."""
        length = self.config.get("max_position_embeddings") or self.config.get("n_positions")
        return int(length) if length else None


@cache
def shipped() -> tuple[ShippedConfig, ...]:
    """All shipped configs, the smallest first."""
    configs = []
    for file in (ASSETS / "models").glob("*.json"):
        card = json.loads(file.read_text(encoding="utf-8"))
        configs.append(
            ShippedConfig(
                card["name"],
                card["parameters"],
                card["weights_license"],
                card["hub_id"],
                tuple(card["source"]),
                card["config"],
            )
        )
    return tuple(sorted(configs, key=lambda config: config.parameters))


def get(name: str) -> ShippedConfig:
    """The config of that name, in whatever case it is written. Raises LabError."""
    names = {config.name.lower(): config for config in shipped()}
    if name.lower() in names:
        return names[name.lower()]
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    guess = f"Did you mean config:{names[near[0]].name}? " if near else ""
    raise LabError(
        f"There is no shipped config '{quote(name)}'.",
        f"{guess}'python -m lab models' lists them.",
    )
