"""What a method can be combined with, and why not where it cannot.

A field of `Method` named here holds True or `No(reason)`. The checks, the form, the command line
and the support matrix read the same fields; no code compares names of methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unsupported:
    """A "no" that gives its reason: false, so that `if method.can_pack` reads as it should."""

    reason: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class Feature:
    """One column of the matrix.

    `key` names it in JSON and `method_attribute` on `Method`; `spec_key` is the field of the spec
    that asks for it and `is_requested` whether a resolved spec does. A feature without a
    `spec_key` is for reading only.
    """

    key: str
    method_attribute: str
    title: str
    spec_key: str = ""
    is_requested: Callable[[Any], bool] = lambda spec: False


FEATURES = (
    Feature("packing", "can_pack", "packing", "data.packing", lambda s: s.data.packing == "on"),
    Feature(
        "activation_checkpointing",
        "can_checkpoint_activations",
        "activation checkpointing",
        "train.activation_checkpointing",
        lambda s: s.train.activation_checkpointing == "on",
    ),
    Feature(
        "fused_loss",
        "can_fuse_loss",
        "fused loss",
        "train.loss_implementation",
        lambda s: s.train.loss_implementation == "fused",
    ),
    Feature(
        "compile",
        "can_compile",
        "torch.compile",
        "train.compile",
        lambda s: s.train.compile == "on",
    ),
    Feature(
        "mixed_precision",
        "can_mix_precision",
        "mixed precision",
        "train.precision",
        lambda s: s.train.precision == "mixed",
    ),
    Feature(
        "bfloat16",
        "can_use_bfloat16",
        "bfloat16 weights",
        "train.precision",
        lambda s: s.train.precision == "bfloat16",
    ),
    Feature(
        "bfloat16_adapters",
        "can_use_bfloat16_adapters",
        "bfloat16 adapters",
        "train.adapter_precision",
        lambda s: s.train.adapter_precision == "bfloat16",
    ),
    Feature(
        "budget_of_seconds",
        "can_limit_time",
        "training time limit",
        "train.max_seconds",
        lambda s: s.train.max_seconds is not None,
    ),
    Feature(
        "update_in_backward",
        "can_update_in_backward",
        "optimizer step in the backward pass",
        "train.optimizer",
        lambda s: s.train.optimizer.endswith("_in_backward"),
    ),
    Feature("conv1d", "can_train_conv1d", "Conv1D layers (GPT-2)", "model"),
    Feature("quantised_base", "can_quantise_base", "4-bit or 8-bit base", "model"),
    Feature("merge", "can_merge", "merging into the base model"),
    Feature("plain_script", "can_script", "export as a script"),
    Feature(
        "is_identity_at_start", "is_identity_at_start", "identical to the base model at step 0"
    ),
)


def refusals(method: Any, spec: Any) -> list[tuple[str, str]]:
    """(spec key, message) for each requested feature that the method does not support."""
    problems = []
    for feature in FEATURES:
        answer = getattr(method, feature.method_attribute)
        if not answer and feature.is_requested(spec):
            problems.append(
                (
                    feature.spec_key,
                    f"{method.title} does not support {feature.title}: "
                    f"{unsupported_reason(answer)}",
                )
            )
    return problems


def unsupported_reason(answer: Any) -> str:
    """The reason of a "no", empty for a "yes"."""
    return (
        answer.reason if isinstance(answer, Unsupported) else ("" if answer else "not supported.")
    )


@dataclass(frozen=True)
class SupportCell:
    yes: bool
    reason: str


@dataclass(frozen=True)
class SupportRow:
    """One method of the matrix; `cells` by the keys of the features."""

    name: str
    title: str
    cells: Mapping[str, SupportCell]


def matrix(methods: list[Any]) -> list[SupportRow]:
    """What each method supports."""

    def cell(answer: Any) -> SupportCell:
        return SupportCell(bool(answer), unsupported_reason(answer))

    return [
        SupportRow(
            method.name,
            method.title,
            {each.key: cell(getattr(method, each.method_attribute)) for each in FEATURES},
        )
        for method in methods
    ]


def reasons(rows: list[SupportRow]) -> dict[str, list[str]]:
    """The reasons of a matrix, each with the "method × feature" cells that it explains."""
    titles = {feature.key: feature.title for feature in FEATURES}
    pairs: dict[str, list[str]] = {}
    for row in rows:
        for key, cell in row.cells.items():
            if not cell.yes:
                pairs.setdefault(cell.reason, []).append(f"{row.name} × {titles[key]}")
    return pairs
