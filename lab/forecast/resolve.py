"""Decides each "auto" of a spec that needs no figure: method and device settle it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from lab import methods, optimizers
from lab.errors import LabError
from lab.methods import Method
from lab.spec import RunSpec

DECIDED_BY_FORECAST = ("activation_checkpointing", "compile")  # settings of `train`


@dataclass(frozen=True)
class Resolution:
    """A spec without "auto". The settings in `is_open` are "off" until a forecast decides them.
    `notes` tell of defaults of the method that were replaced."""

    spec: RunSpec
    is_open: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> Method:
        return methods.get(self.spec.method["name"])

    def fitted_to(self, model: Any) -> Resolution:
        """With defaults of the method that `model` (which may be on the meta device) takes."""
        try:
            changes, notes = self.method.fit_defaults(model, self.spec.method_config)
        except (re.error, LabError):
            return self  # targets that cannot be used: the method's own check says why
        spec = replace(self.spec, method=self.spec.method | changes)
        return replace(self, spec=spec, notes=(*self.notes, *notes))


def resolve(spec: RunSpec, has_bf16: bool) -> Resolution:
    """The spec with each `auto` decided for a device with or without bfloat16."""
    method = methods.get(spec.method["name"])
    train = spec.train
    precision = train.precision
    if precision == "auto":
        precision = "bfloat16" if has_bf16 else "float32"
    is_open = {name for name in DECIDED_BY_FORECAST if getattr(train, name) == "auto"}
    choices: dict[str, Any] = {
        "precision": precision,
        "learning_rate": (
            method.default_lr if train.learning_rate == "auto" else train.learning_rate
        ),
        "adapter_precision": _adapter_precision(method, replace(train, precision=precision)),
        **dict.fromkeys(is_open, "off"),
    }
    packing = spec.data.packing
    if packing == "auto":
        packing = "on" if method.can_pack and spec.data.group_by_length == "off" else "off"
    return Resolution(
        replace(
            spec,
            name=spec.name.strip() or method.title,
            train=replace(train, **choices),
            data=replace(spec.data, packing=packing),
        ),
        frozenset(is_open),
    )


def _adapter_precision(method: Any, train: Any) -> str:
    """As the base's weights, where the optimizer keeps the bits that bfloat16 lacks."""
    if train.adapter_precision != "auto":
        return str(train.adapter_precision)
    is_narrow = train.precision == "bfloat16" and method.can_use_bfloat16_adapters
    has_copies = optimizers.can_use_master_weights(method, optimizers.get(train.optimizer))
    return "bfloat16" if is_narrow and has_copies else "float32"
