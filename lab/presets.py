"""Starting points for the form. A preset of ours holds only what differs from the defaults; one
that a person saves holds the whole spec."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lab import paths
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.schema import quote


@dataclass(frozen=True)
class Preset:
    name: str
    title: str
    help: str
    changes: dict[str, Any]


PRESETS = (
    Preset(
        "first",
        "First look",
        "LoRA on 108 short persona chats, 60 steps: the model gets another answer to who made it.",
        {
            "name": "First look",
            "method": {"name": "lora"},
            "data": {"eval_fraction": 0.2, "max_length": 256, "packing": "off"},
            "train": {"batch_size": 2, "max_steps": 60, "learning_rate": 1e-3},
        },
    ),
    Preset(
        "style",
        "Style with LoRA",
        "Two epochs on the instructions with LoRA on all linear layers: learns tone and format, "
        "base weights stay frozen.",
        {
            "name": "Style with LoRA",
            "method": {"name": "lora"},
            "data": {"dataset": "builtin:everyday-instructions"},
            "train": {"epochs": 2.0},
        },
    ),
    Preset(
        "full",
        "Full fine-tuning",
        "Every parameter trains: the most capacity and the most memory. Lower learning rate, "
        "fewer epochs.",
        {
            "name": "Full fine-tuning",
            "method": {"name": "full"},
            "data": {"dataset": "builtin:everyday-instructions"},
            "train": {"keep_best": 1, "keep_last": 1},
        },
    ),
    Preset(
        "classify",
        "Classify tickets",
        "A small adapter learns to answer a support ticket with its class.",
        {
            "name": "Classify tickets",
            "method": {"name": "lora", "rank": 8, "alpha": 16.0},
            "data": {"dataset": "builtin:support-tickets", "eval_fraction": 0.2},
            "train": {"epochs": 2.0, "batch_size": 2},
        },
    ),
)


@dataclass(frozen=True)
class Pair:
    """Two methods on equal terms: the same base, data, order, steps, seed and evaluation."""

    name: str
    title: str
    help: str
    methods: tuple[str, str]
    changes: dict[str, Any]


PAIRS = (
    Pair(
        "full-lora",
        "Full against LoRA",
        "Two runs with the same data, order, steps and seed; each with the learning rate of its "
        "method. Both are queued, and their curves end in one chart.",
        ("lora", "full"),
        {
            "name": "Persona",
            "data": {"eval_fraction": 0.2, "max_length": 256, "packing": "off"},
            "train": {"batch_size": 2, "max_steps": 60},
        },
    ),
)


def get(name: str) -> Preset:
    return next(preset for preset in PRESETS if preset.name == name)


def pair(name: str) -> Pair | None:
    return next((pair for pair in PAIRS if pair.name == name), None)


MAX_TITLE_CHARS = 60


def saved() -> dict[str, str]:
    """{name: title} of the presets that were saved here, by title."""
    titles = {}
    for file in (paths.home() / "presets").glob("*.json"):
        stored = read_object(file) or {}
        if isinstance(stored.get("spec"), dict) and not file.is_symlink():
            titles[file.stem] = str(stored.get("title") or file.stem)[:MAX_TITLE_CHARS]
    return dict(sorted(titles.items(), key=lambda item: item[1].lower()))


def save(title: str, spec: dict[str, Any]) -> str:
    """Keep `spec` under `title`; a preset of the same title is replaced. Returns its name.

    Raises LabError for a title that names nothing.
    """
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:MAX_TITLE_CHARS]
    if not name:
        raise LabError(
            f"'{quote(title)}' cannot be the title of a preset.", "Use a few letters or digits."
        )
    folder = paths.make_folder(paths.home() / "presets")
    write_json(
        folder / f"{name}.json", {"v": 1, "title": title.strip()[:MAX_TITLE_CHARS], "spec": spec}
    )
    return name


def load_saved(name: str) -> dict[str, Any]:
    """The spec of a saved preset. Raises LabError if it is gone or damaged."""
    if name in saved():
        stored = read_object(paths.home() / "presets" / f"{name}.json") or {}
        if isinstance(stored.get("spec"), dict):
            return dict(stored["spec"])
    raise LabError(
        f"There is no preset '{quote(name)}'.", "It was deleted, or its file is damaged."
    )
