"""Floating-point operations of a training step, counted from the layers.

A linear layer with P weights costs 2P a token forward and 2P for the gradient of its input, and
2P more where the weight itself trains. The head counts only the tokens of the loss. Attention
costs 4 n^2 d forward for a sequence of n tokens and d = heads x head size, and twice that
backward (Chowdhery et al. 2022, arXiv:2204.02311, appendix B: without the causal half).
Recomputation under activation checkpointing is not counted: these are model FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lab.data.batches import TokenSequence


@dataclass(frozen=True)
class FlopCosts:
    """Costs of one training step by what causes them."""

    per_token: float
    per_loss_token: float
    per_token_pair: float
    virtual: int = 0  # positions before each row that pass through the layers
    prefix: int = 0  # positions before each row that are only attended to

    def of(self, row: TokenSequence) -> float:
        pairs = sum(
            (length + self.virtual) * (length + self.virtual + self.prefix)
            for length in row.lengths
        )
        return (
            self.per_token * (row.tokens + self.virtual)
            + self.per_loss_token * row.counted
            + self.per_token_pair * pairs
        )

    def of_rows(self, rows: Iterable[TokenSequence]) -> float:
        return sum(self.of(row) for row in rows)


def count(model: Any, loss: str, virtual_tokens: tuple[int, int] = (0, 0)) -> FlopCosts:
    """The costs for `model` with its trainable parameters marked. `virtual_tokens`: positions
    before each row that pass through the layers, and such that are only attended to."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = set(model.get_output_embeddings().modules())
    per_token, per_loss_token = 0.0, 0.0
    for module in model.modules():
        if not isinstance(module, (torch.nn.Linear, Conv1D)):
            continue
        # by the layer's own sizes: 4-bit weights lie packed in fewer numbers
        is_linear = isinstance(module, torch.nn.Linear)
        size = module.in_features * module.out_features if is_linear else module.weight.numel()
        cost = size * (6.0 if module.weight.requires_grad else 4.0)
        if module in head and loss == "fused":
            per_loss_token += cost
        else:
            per_token += cost
    config = model.config
    heads = getattr(config, "num_attention_heads", 0)
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1))
    layers = getattr(config, "num_hidden_layers", 0)
    return FlopCosts(per_token, per_loss_token, 12.0 * layers * width, *virtual_tokens)
