"""Finds the layers that adapters attach to, by class and shape instead of architecture names.
`model` may be on the meta device everywhere here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lab.errors import Problem
from lab.library_imports import import_peft
from lab.methods.parts import patterns
from lab.methods.parts.compatibility import Unsupported
from lab.methods.parts.script_lines import regex_of
from lab.schema import option

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LinearLayer:
    """A linear map of `d_in` to `d_out` numbers: an nn.Linear, or GPT-2's Conv1D."""

    name: str
    d_in: int
    d_out: int
    is_conv1d: bool = False

    @property
    def layer_index(self) -> int | None:
        """Which decoder layer it belongs to, from 0 on; None for one outside."""
        match = re.search(r"\.(\d+)\.", f".{self.name}.")
        return int(match.group(1)) if match else None


def targets_option(effect: str = "get an adapter") -> Any:
    """The field `target_modules` as all methods beside linear layers have it."""
    return option(
        ALL_LINEAR,
        "Target modules",
        f"Layers that {effect}: all-linear (all linear layers except the head), names such as "
        "q_proj, v_proj, or re: and a regular expression over full names.",
        max_characters=4096,
        words=(ALL_LINEAR,),
        names=True,
        formerly="targets",
    )


def linear_layers(model: Any) -> list[LinearLayer]:
    """Every linear layer in the model's order, the head included."""
    import torch
    from transformers.pytorch_utils import Conv1D

    layers = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            layers.append(LinearLayer(name, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            d_in, d_out = module.weight.shape
            layers.append(LinearLayer(name, d_in, d_out, is_conv1d=True))
    return layers


def target_layers(model: Any, targets: str | list[str]) -> list[LinearLayer]:
    """The linear layers that `targets` names. Raises re.error for a bad pattern, LabError for one
    that takes long."""
    layers = linear_layers(model)
    if targets == ALL_LINEAR:
        head = model.get_output_embeddings()
        heads = {name for name, module in model.named_modules() if module is head}
        bypassed = bypassed_names(model)
        return [
            layer
            for layer in layers
            if layer.name not in heads and layer.name.rsplit(".", 1)[-1] not in bypassed
        ]
    chosen = patterns.all_named(target_entries(targets), (layer.name for layer in layers))
    return [layer for layer in layers if layer.name in chosen]


def bypassed_names(model: Any) -> set[str]:
    """Last names of linear layers that nothing can stand beside: whose weight the architecture's
    kernels read without calling the layer, such as Mamba's out_proj (PEFT refuses them), and
    routers that give back more than a linear map does."""
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    peft = import_peft()
    refused, settings = set(), peft.LoraConfig()
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        try:
            _check_lora_target_modules_mamba(settings, model, last)
        except ValueError:
            refused.add(last)
        if last not in refused and not _gives_a_tensor(module):
            refused.add(last)
    return refused & {layer.name.rsplit(".", 1)[-1] for layer in linear_layers(model)}


def _gives_a_tensor(module: Any) -> bool:
    """Whether a linear layer of an architecture's own class answers as nn.Linear does, tried."""
    import torch

    kind = type(module)
    is_own = kind.__module__.startswith("transformers.models") and issubclass(kind, torch.nn.Linear)
    if not is_own or kind.forward is torch.nn.Linear.forward:
        return True
    with torch.no_grad():
        answer = kind.forward(module, module.weight.new_zeros(1, module.in_features))
    return isinstance(answer, torch.Tensor)


def target_entries(targets: str | list[str]) -> list[str]:
    """The entries of a list; runs of older labs keep a pattern as one text."""
    return [targets] if isinstance(targets, str) else targets


def peft_targets(targets: str | list[str]) -> str | list[str]:
    """As PEFT writes them: "all-linear", last parts of names, or one pattern over full names."""
    entries = target_entries(targets)
    if targets == ALL_LINEAR or not any(map(patterns.is_pattern, entries)):
        return targets
    return regex_of(entries)


def target_problems(
    model: Any, targets: str | list[str], can_train_conv1d: bool | Unsupported
) -> list[Problem]:
    """Targets without a match, invalid patterns, and Conv1D where it is not supported."""
    problems: list[Problem] = []
    if targets != ALL_LINEAR:
        names = [layer.name for layer in linear_layers(model)]
        choices = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
        nothing = f"names no linear layer of this model. Choose from: {choices}; or {ALL_LINEAR}."
        problems = patterns.problems(
            "method.target_modules", target_entries(targets), names, nothing
        )
    if problems or can_train_conv1d:
        return problems
    if any(layer.is_conv1d for layer in target_layers(model, targets)):
        reason = can_train_conv1d.reason if isinstance(can_train_conv1d, Unsupported) else ""
        problems.append(Problem("method.target_modules", f"this model has Conv1D layers: {reason}"))
    return problems


def norms(model: Any) -> list[tuple[str, Any]]:
    """(name, module) of every normalisation layer with weights, by its class."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        and any(True for _ in module.parameters(recurse=False))
    ]


def module_names(model: Any, requested: list[str]) -> tuple[list[str], list[str]]:
    """(full names of the modules meant by `requested`, entries that mean none).

    A name is whole or a last part; "embeddings" and "head" mean what the model calls so.
    """
    roles = {"embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    modules = {name: module for name, module in model.named_modules() if name}
    names: list[str] = []
    unknown = []
    for entry in requested:
        matching = patterns.named(entry, modules)
        if entry in roles:
            matching = [name for name, module in modules.items() if module is roles[entry]]
        names += [name for name in matching if name not in names]
        if not matching:
            unknown.append(entry)
    return names, unknown


def weights_of(model: Any, names: list[str]) -> Iterator[Any]:
    """The parameters of the named modules, each once, tied ones too."""
    seen: set[int] = set()
    for name in names:
        for weight in model.get_submodule(name).parameters():
            if id(weight) not in seen:
                seen.add(id(weight))
                yield weight


def is_tied(model: Any) -> bool:
    """Whether head and embeddings are one tensor."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight
