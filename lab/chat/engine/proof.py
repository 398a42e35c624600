"""Proof that the models of a chat are what their names say.

The base is the base: its logits on a few fixed tokens are those that it had before any variant
was made from it. The adapter is on: every tensor of its file is in the model, and the model's
logits differ from the base's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lab.chat.answers import ProofRecord
from lab.formatting import quantity

PROBE_TOKENS = 8
EDGE = 8  # numbers at each end of a tensor that tell most tensors apart


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was measured when a model was loaded; None where it does not apply.

    Differences are the largest absolute ones of float32 logits on `probe_ids`.
    """

    base_difference: float | None = None  # of the base, before and after this model was made
    effect: float | None = None  # of this model against its base
    tensors: int | None = None  # in the result's files
    tensors_loaded: int | None = None  # of those, in the model

    @property
    def problems(self) -> list[str]:
        """What a person must know before believing an answer; empty if all is proven."""
        problems = []
        if self.base_difference:
            problems.append(
                "The base is not the base: its logits changed by "
                f"{self.base_difference:.2g} when this model was loaded."
            )
        if self.tensors is not None and self.tensors_loaded != self.tensors:
            problems.append(
                f"Only {self.tensors_loaded} of the result's {quantity(self.tensors, 'tensor')} "
                f"{'is' if self.tensors_loaded == 1 else 'are'} in the model."
            )
        if self.effect == 0:
            problems.append("The result answers exactly as its base does.")
        return problems

    def record(self) -> ProofRecord:
        return ProofRecord(**vars(self), problems=tuple(self.problems))


def probe_ids(model: Any) -> torch.Tensor:
    """(1, PROBE_TOKENS) ids spread over the vocabulary, on the model's device."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, PROBE_TOKENS + 1) * (vocabulary - 1) // PROBE_TOKENS
    return ids[None].to(model.device)


def probe(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """(PROBE_TOKENS, V) float32 logits, on the processor."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0].float().cpu()


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest absolute difference; rows that one model has beyond the other's vocabulary are
    left out."""
    width = min(first.shape[-1], second.shape[-1])
    return float((first[:, :width] - second[:, :width]).abs().max())


def count_loaded(model: Any, files: Sequence[Path]) -> tuple[int, int]:
    """(tensors in these files of safetensors, those of them that `model` holds, by value)."""
    from safetensors import safe_open

    tensors_by_shape: dict[Any, list[torch.Tensor]] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    for _, tensor in tensors:
        tensors_by_shape.setdefault(tuple(tensor.shape), []).append(tensor.detach())
    total = loaded = 0
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():
                tensor = stored.get_tensor(name)
                total += 1
                loaded += any(
                    _equal(tensor, candidate)
                    for candidate in tensors_by_shape.get(tuple(tensor.shape), ())
                )
    return total, loaded


def _equal(stored: torch.Tensor, loaded: torch.Tensor) -> bool:
    """Whether `own` is `stored` in the type that the model has."""
    if loaded.is_meta:
        return False
    flat, other = stored.reshape(-1), loaded.reshape(-1)
    for part in (slice(0, EDGE), slice(-EDGE, None), slice(None)):
        if not torch.equal(flat[part].to(loaded.dtype), other[part].cpu()):
            return False
    return True
