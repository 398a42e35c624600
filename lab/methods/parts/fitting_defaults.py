"""Defaults of methods with LoRA that a model does not take, and the values that it does.

A value that somebody chose is never changed: where it cannot be used, the check says so.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lab.library_imports import import_peft
from lab.methods.parts import patterns
from lab.methods.parts.target_modules import (
    ALL_LINEAR,
    bypassed_names,
    linear_layers,
    target_layers,
)

NO_DROPOUT = (
    "LoRA dropout is 0 in place of {default:g}: this model's experts are stacked into parameters, "
    "beside which PEFT has no dropout."
)
BYPASSED = (
    "The targets are all linear layers but {names}, which nothing can stand beside in this "
    "architecture: kernels read its weight without calling the layer, or it is a router."
)


def fitting_targets(model: Any, config: Any) -> tuple[dict[str, Any], list[str]]:
    """({"target_modules": names}, a note) where `all-linear` leaves layers out; else nothing."""
    bypassed = bypassed_names(model)
    if getattr(config, "target_modules", None) != ALL_LINEAR or not bypassed:
        return {}, []
    targets = [layer.name for layer in target_layers(model, ALL_LINEAR)]
    names = sorted({name.rsplit(".", 1)[-1] for name in targets})
    meant = patterns.all_named(names, [layer.name for layer in linear_layers(model)])
    note = BYPASSED.format(names=" and ".join(sorted(bypassed)))
    return {"target_modules": names if meant == set(targets) else targets}, [note]


def fitting_dropout(
    model: Any, config: Any, targets: str | list[str]
) -> tuple[dict[str, Any], list[str]]:
    """({"dropout": 0}, a note) where PEFT sets LoRA on experts' parameters; else nothing."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    default = defaults.get("dropout")
    if not default or config.dropout != default or not _adapts_parameters(model, targets):
        return {}, []
    return {"dropout": 0.0}, [NO_DROPOUT.format(default=default)]


def _adapts_parameters(model: Any, targets: str | list[str]) -> bool:
    """Whether PEFT turns `targets` into parameters, as it does for experts that transformers 5
    stacks into one tensor."""
    from peft.utils.transformers_weight_conversion import (
        convert_peft_config_for_transformers,
        get_model_conversion_mapping,
    )

    peft = import_peft()
    if targets != ALL_LINEAR:  # PEFT would match a pattern without a limit of time
        targets = [layer.name for layer in target_layers(model, targets)]
    settings = peft.LoraConfig(target_modules=targets)
    try:
        convert_peft_config_for_transformers(
            settings, model=model, conversions=get_model_conversion_mapping(model)
        )
    except ValueError:  # note when the method is applied
        return False
    return bool(settings.target_parameters)
