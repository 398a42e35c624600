"""The two factors of every update that a LoRA or an AdaLoRA adds to a linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def low_rank_factors(model: Any) -> Iterator[tuple[Any, Any]]:
    """(left (O, R), right (R, I)) tensors of each active update ΔW = left @ right, in the order of
    the model's layers; none for a method without such factors. Of PiSSA and OLoRA, which start at a
    part of the base, the start is taken off again: R is twice the rank then."""
    from peft.tuners.adalora.layer import AdaLoraLayer
    from peft.tuners.lora.layer import LoraLayer

    start = getattr(model, "initial_factors", {})
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            if adapter not in module.lora_A:
                continue  # an update of an embedding, whose matrices are as long as the vocabulary
            right, left = (getattr(module, f"lora_{part}")[adapter] for part in "AB")
            scale = module.scaling[adapter]
            if isinstance(module, AdaLoraLayer):
                rank = module.ranknum[adapter] + 1e-5  # as PEFT divides
                yield left.detach() * (scale / rank), (right * module.lora_E[adapter]).detach()
                continue
            left, right = left.weight.detach(), right.weight.detach()
            first = f"{name}.lora_A.{adapter}.weight"
            if first in start:
                yield (
                    _joined([left, -start[first.replace("lora_A", "lora_B")]], 1) * scale,
                    _joined([right, start[first]], 0),
                )
            else:
                yield left * scale, right


def _joined(parts: list[Any], axis: int) -> Any:
    import torch

    return torch.cat([part.to(parts[0]) for part in parts], dim=axis)
