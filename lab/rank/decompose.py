"""The result of a method that PEFT cannot convert as a LoRA, by our own decomposition.

What the result changes is taken matrix by matrix, and cut down to the fewest singular values that
hold a share of its energy. LoRA stands beside linear layers alone: what changes elsewhere
(embeddings, norms, biases) stays as the base has it, and the matrices among it count as lost.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np

from lab import methods
from lab.errors import LabError
from lab.export import merge
from lab.export.lora_form import PREFIX, AdapterForm
from lab.library_imports import import_peft
from lab.paths import RunDir
from lab.rank.spectrum import energy_rank
from lab.rank.updates import updates
from lab.spec import RunSpec


def why_not(run: RunDir) -> str:
    """Why the result of `run` changes no matrix of its base, in a sentence; empty where it may."""
    method = methods.get(RunSpec.of_run(run).method["name"])
    return "" if method.saves_whole_model else merge.why_not(run)


def decompose(run: RunDir, base: Any, energy: float) -> AdapterForm:
    """The update of each linear layer of `base` at the rank that holds this share of its energy.
    Raises LabError where no linear layer changes, or one needs a higher rank than a LoRA has."""
    import torch
    from transformers.pytorch_utils import Conv1D

    peft = import_peft()
    linear = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    lost = total = 0.0
    for update in updates(run):
        name, delta = update.name.removesuffix(".weight"), update.delta
        total += float((delta**2).sum())
        if name not in linear:
            lost += float((delta**2).sum())
            continue
        u, values, vt = np.linalg.svd(delta, full_matrices=False)
        rank = energy_rank(values, energy)
        lost += float((values[rank:] ** 2).sum())
        left, right = u[:, :rank] * values[:rank], vt[:rank]
        if isinstance(linear[name], Conv1D):  # stores its matrix the other way round
            left, right = right.T, left.T
        for part, factor in (("A", right), ("B", left)):
            key = f"{PREFIX}{name}.lora_{part}.weight"
            tensors[key] = torch.from_numpy(np.ascontiguousarray(factor, dtype=np.float32))
        ranks[name] = rank
    if not ranks:
        raise LabError(f"{run.id} changes no linear layer.", "Use the result as it is.")
    highest = _highest_rank()
    if max(ranks.values()) > highest:
        raise LabError(
            f"{100 * energy:g} % of the energy needs rank {max(ranks.values()):,}; a LoRA has "
            f"{highest:,} at most.",
            "Take a smaller share.",
        )
    config = peft.LoraConfig(
        r=1, lora_alpha=1, rank_pattern=ranks, alpha_pattern=dict(ranks), target_modules=set(ranks),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    fidelity = math.sqrt(max(0.0, 1 - lost / total)) if total else 1.0
    return AdapterForm(run, config, tensors, fidelity)


def _highest_rank() -> int:
    (rank,) = (field for field in fields(methods.get("lora").config) if field.name == "rank")
    return int(rank.metadata["max"])
