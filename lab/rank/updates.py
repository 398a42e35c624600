"""The update of every matrix of a result: of LoRA its factors, else merged less base."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab import methods
from lab.chat import models as chat_models
from lab.errors import LabError
from lab.export import merge
from lab.formatting import quantity
from lab.models import catalog, weights
from lab.paths import RunDir
from lab.spec import RunSpec

MIN_SIDE = 2  # rows and columns of a matrix


@dataclass(frozen=True, eq=False)
class Update:
    """ΔW (O, I) = left (O, R) @ right (R, I); `right` is None where `left` is ΔW itself. `base`:
    the matrix that it was added to."""

    name: str
    left: np.ndarray
    right: np.ndarray | None
    base: np.ndarray

    @property
    def delta(self) -> np.ndarray:
        return self.left if self.right is None else self.left @ self.right


def updates(run: RunDir, tell: Callable[[str], object] = lambda phase: None) -> Iterator[Update]:
    """In the order of the model's modules, in float32. Raises LabError for a result that changes no
    weights, or has none yet."""
    import torch

    if not run.artifact.is_dir():
        raise LabError(f"{run.id} has no trained model yet.", "Wait until it has ended.")
    named = chat_models.parse(f"run:{run.id}")
    tell("loading the base")
    base = weights.load_model(catalog.resolve(named.base), torch.float32)
    before: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in base.state_dict().items():
        if tensor.data_ptr() not in seen:  # a tied head is the embedding
            before[name] = tensor.detach().clone()
        seen.add(tensor.data_ptr())
    del base
    tell("loading the result")
    model = chat_models.load(named).model
    factors = dict(_factors(model))
    method = methods.get(RunSpec.of_run(run).method["name"])
    if not factors and not method.saves_whole_model:
        if reason := merge.why_not(run):
            raise LabError(f"The update of {run.id} is no matrix: {reason}", "Choose another run.")
        if set(before) - set(model.state_dict()):
            tell("merging")
            model = method.merge(model)
    after = model.state_dict() if not factors else {}
    changed = vectors = 0
    for name, tensor in before.items():
        if tensor.ndim != 2 or min(tensor.shape) < MIN_SIDE:
            vectors += name in after and not torch.equal(after[name].float(), tensor.float())
            continue
        weight = tensor.float().cpu().numpy()
        if name in factors:
            left, right = factors[name]
            changed += 1
            yield Update(name, left, right, weight)
        elif name in after and after[name].shape == tensor.shape:
            delta = after[name].float().cpu().numpy() - weight
            if np.any(delta):
                changed += 1
                yield Update(name, delta, None, weight)
    if vectors and not changed:
        raise LabError(
            f"The result of {run.id} changes {quantity(vectors, 'vector')} (norms, biases) "
            "and no matrix, so "
            "there is no rank.",
            "Choose another run.",
        )


def _factors(model: Any) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """(name of the base's weight, (B scaled, A)) of each LoRA layer that adds B A and no more; none
    if one does otherwise (DoRA), or if other weights train beside them."""
    from peft.tuners.lora.layer import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))
    ]
    if not all(isinstance(module, Linear) and not module.lora_variant for _, module in layers):
        return
    for name, module in layers:
        for adapter in module.active_adapters:
            left = module.lora_B[adapter].weight.detach().float().cpu().numpy()
            right = module.lora_A[adapter].weight.detach().float().cpu().numpy()
            left = left * module.scaling[adapter]
            if module.fan_in_fan_out:  # GPT-2 stores its matrices the other way round
                left, right = right.T, left.T
            plain = name.removeprefix("base_model.model.")
            yield f"{plain}.weight", (left, right)
