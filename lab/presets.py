"""Starting points for the form. A preset holds only what differs from the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
        "LoRA on the persona chats, sixty small steps: a few minutes on a laptop, and the model "
        "gives another answer to who made it.",
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
        "Two passes over the instructions with adapters on all linear layers: tone and format, "
        "with the base left as it is.",
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
        "fewer passes.",
        {
            "name": "Full fine-tuning",
            "method": {"name": "full"},
            "data": {"dataset": "builtin:everyday-instructions"},
            "train": {"keep_best": 1, "keep_last": 1},
        },
    ),
    Preset(
        "classify",
        "Sort tickets",
        "A small adapter learns to answer a support ticket with its class.",
        {
            "name": "Sort tickets",
            "method": {"name": "lora", "rank": 8, "alpha": 16.0},
            "data": {"dataset": "builtin:support-tickets", "eval_fraction": 0.2},
            "train": {"epochs": 2.0, "batch_size": 2},
        },
    ),
)


def get(name: str) -> Preset:
    return next(preset for preset in PRESETS if preset.name == name)
