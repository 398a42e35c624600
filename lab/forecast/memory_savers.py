"""What to change when a run does not fit, each change with its predicted peak."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab import methods

WITH_STATE = ("adamw", "adamw8bit", "paged_adamw8bit", "adafactor")
MIN_LENGTH_TOKENS = 64  # tokens; below it, cutting rows shorter is no fix


@dataclass(frozen=True)
class MemorySaver:
    """One change. `changes` are dotted keys of the spec; `keeps_effective_batch` says whether the
    rows of an optimizer step, and so the training, stay the same."""

    title: str
    changes: dict[str, Any]
    keeps_effective_batch: bool = True

    def apply(self, spec: dict[str, Any]) -> dict[str, Any]:
        return with_changes(spec, self.changes)


def with_changes(spec: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the spec's JSON with the changes, by their dotted keys."""
    changed = copy.deepcopy(spec)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            changed.setdefault(section, {})[name] = value
        else:
            changed[section] = value
    return changed


def candidates(spec: dict[str, Any], *, on_gpu: bool) -> list[MemorySaver]:
    """The changes that can make a resolved spec smaller, gentlest first."""
    train, data, method = spec["train"], spec["data"], spec["method"]
    savers = []
    if train["loss_implementation"] == "plain":
        savers.append(MemorySaver("Use the fused loss", {"train.loss_implementation": "fused"}))
    if train["activation_checkpointing"] != "on":
        savers.append(
            MemorySaver(
                "Activation checkpointing (slower)", {"train.activation_checkpointing": "on"}
            )
        )
    if train["batch_size"] > 1:
        half = train["batch_size"] // 2
        times = -(-train["batch_size"] * train["gradient_accumulation_steps"] // half)
        savers.append(
            MemorySaver(
                f"Halve the batch size, double the gradient accumulation ({half} × {times})",
                {"train.batch_size": half, "train.gradient_accumulation_steps": times},
                keeps_effective_batch=half * times
                == train["batch_size"] * train["gradient_accumulation_steps"],
            )
        )
    if on_gpu and train["precision"] != "bfloat16":
        savers.append(MemorySaver("Weights in bfloat16", {"train.precision": "bfloat16"}))
    chosen = methods.get(method["name"])
    rule = train.get("optimizer", "adamw")
    if chosen.saves_whole_model and rule == "adamw":
        title, changes = "8-bit AdamW", {"train.optimizer": "adamw8bit"}
        savers.append(MemorySaver(title, changes, keeps_effective_batch=False))
    if data["max_length"] // 2 >= MIN_LENGTH_TOKENS:
        length = data["max_length"] // 2
        savers.append(
            MemorySaver(
                f"Truncate at {length} tokens",
                {"data.max_length": length},
                keeps_effective_batch=False,
            )
        )
    if chosen.lighter_method:
        lighter = methods.get(chosen.lighter_method)
        savers.append(
            MemorySaver(
                f"{lighter.title} instead of {chosen.title.lower()}",
                {"method": {"name": lighter.name}, "train.learning_rate": "auto"},
                keeps_effective_batch=False,
            )
        )
    if chosen.saves_whole_model and rule in WITH_STATE:
        title = "SGD (no optimizer states; needs a 100 times higher learning rate)"
        savers.append(MemorySaver(title, {"train.optimizer": "sgd"}, keeps_effective_batch=False))
    return savers
