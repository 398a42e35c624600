"""Decides each "auto" of a spec that needs no figure: method and device settle it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from lab import methods, optimizers
from lab.errors import LabError
from lab.spec import RunSpec


def resolve(spec: RunSpec, has_bf16: bool) -> RunSpec:
    """The spec with each `auto` decided for a device with or without bfloat16."""
    method = methods.get(spec.method["name"])
    train = spec.train
    precision = train.precision
    if precision == "auto":
        precision = "bfloat16" if has_bf16 else "float32"
    choices: dict[str, Any] = {
        "precision": precision,
        "learning_rate": (
            method.default_lr if train.learning_rate == "auto" else train.learning_rate
        ),
        "adapter_precision": _adapter_precision(method, replace(train, precision=precision)),
        "activation_checkpointing": (
            "off" if train.activation_checkpointing == "auto" else train.activation_checkpointing
        ),
        "compile": "off" if train.compile == "auto" else train.compile,
    }
    packing = spec.data.packing
    if packing == "auto":
        packing = "on" if method.can_pack and spec.data.group_by_length == "off" else "off"
    return replace(
        spec,
        name=spec.name.strip() or method.title,
        train=replace(train, **choices),
        data=replace(spec.data, packing=packing),
    )


def fit_method(spec: RunSpec, model: Any) -> tuple[RunSpec, list[str]]:
    """(`spec` with the method's defaults that `model` does not take replaced, notes that say so).
    `model` may be on the meta device."""
    try:
        changes, notes = methods.get(spec.method["name"]).fit_defaults(model, spec.method_config)
    except (re.error, LabError):
        return spec, []  # targets that cannot be used: the method's own check says why
    return replace(spec, method=spec.method | changes), notes


def _adapter_precision(method: Any, train: Any) -> str:
    """As the base's weights, where the optimizer keeps the bits that bfloat16 lacks."""
    if train.adapter_precision != "auto":
        return str(train.adapter_precision)
    is_narrow = train.precision == "bfloat16" and method.can_use_bfloat16_adapters
    has_copies = optimizers.can_use_master_weights(method, optimizers.get(train.optimizer))
    return "bfloat16" if is_narrow and has_copies else "float32"
