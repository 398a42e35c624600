"""The head and the cross-entropy in one: the (N, V) logits never exist as a whole.

Legend: N counted tokens, H hidden size, V vocabulary. Losses are sums in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

CHUNK_ELEMENTS = 1 << 24  # logits alive at a time: 64 MB in float32
_all_chunks: ContextVar[bool] = ContextVar("is_repeated", default=True)


@contextmanager
def trace_few_chunks() -> Iterator[None]:
    """For tensors without data: each chunk but the last needs the same memory, so a few stand for
    all; an even number for an even number, since blocks of the allocator take turns."""
    token = _all_chunks.set(False)
    try:
        yield
    finally:
        _all_chunks.reset(token)


def _chunks(count: int, step: int) -> Sequence[int]:
    starts = range(0, count, step)
    if _all_chunks.get() or len(starts) <= 4:
        return starts
    return [*starts[: 3 - len(starts) % 2], starts[-1]]


class FusedLinearCrossEntropy(torch.autograd.Function):
    """sum over n of -log softmax(h_n W^T + b)[target_n], a scalar in float32.

    The gradient is made in the forward pass, chunk by chunk, while the chunk's logits exist
    (the idea of Liger Kernel, arXiv:2410.10989); the backward pass only scales it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        compute: torch.dtype,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        total = hidden_NH.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias else None
        weight = weight_VH.to(compute)
        step = max(1, CHUNK_ELEMENTS // weight_VH.shape[0])
        for start in _chunks(hidden_NH.shape[0], step):
            part = slice(start, start + step)
            hidden = hidden_NH[part].to(compute)
            targets = targets_N[part].unsqueeze(1)
            logits = torch.mm(hidden, weight.t()).float()
            if bias_V is not None:
                logits += bias_V.float()
            top = torch.logsumexp(logits, dim=1, keepdim=True)
            total += (top - logits.gather(1, targets)).sum()
            if not any(ctx.needs_input_grad[:3]):
                continue
            grad = logits.sub_(top).exp_()  # softmax, in place
            grad.scatter_add_(1, targets, grad.new_full(targets.shape, -1.0))
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            narrow = grad.to(compute)
            if grad_hidden is not None:
                grad_hidden[part] = torch.mm(narrow, weight)
            if grad_weight is not None:
                grad_weight += torch.mm(narrow.t(), hidden)
        ctx.gradients = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VH.dtype),
            None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *scales: torch.Tensor) -> Any:
        gradients = tuple(None if grad is None else grad.mul_(scales[0]) for grad in ctx.gradients)
        ctx.gradients = (None, None, None)
        return (*gradients, None, None)


def fused_loss(
    hidden_BTH: torch.Tensor, head: Any, batch: dict[str, torch.Tensor], compute: torch.dtype
) -> torch.Tensor:
    """Summed loss of the counted tokens from the last hidden states and the head module."""
    counted = hidden_BTH.flatten(0, 1).index_select(0, batch["loss_index"])
    bias = getattr(head, "bias", None)
    loss: torch.Tensor = FusedLinearCrossEntropy.apply(
        counted, head_weight(head), bias, batch["targets"], compute
    )
    return loss


@torch.no_grad()
def fused_token_losses(
    hidden_BTH: torch.Tensor, head: Any, batch: dict[str, torch.Tensor], compute: torch.dtype
) -> torch.Tensor:
    """(N,) loss of each counted token in float32, as `fused_loss` sums them; without a gradient."""
    hidden_NH = hidden_BTH.flatten(0, 1).index_select(0, batch["loss_index"])
    weight, bias = head_weight(head).to(compute), getattr(head, "bias", None)
    losses = [hidden_NH.new_zeros(0, dtype=torch.float32)]
    step = max(1, CHUNK_ELEMENTS // weight.shape[0])
    for start in _chunks(hidden_NH.shape[0], step):
        part = slice(start, start + step)
        logits = torch.mm(hidden_NH[part].to(compute), weight.t()).float()
        if bias is not None:
            logits += bias.float()
        targets = batch["targets"][part].unsqueeze(1)
        losses.append(torch.logsumexp(logits, dim=1) - logits.gather(1, targets)[:, 0])
    return torch.cat(losses)


def plain_token_losses(logits_BTV: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same from whole logits."""
    logits_NV = logits_BTV.flatten(0, 1).index_select(0, batch["loss_index"]).float()
    return torch.nn.functional.cross_entropy(logits_NV, batch["targets"], reduction="none")


def is_plain(head: Any) -> bool:
    """Whether the head is one linear map whose weight `head_weight` can give: not one with an
    update beside it."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils import ModulesToSaveWrapper

    if isinstance(head, ModulesToSaveWrapper):
        return type(head.original_module) is torch.nn.Linear
    if isinstance(head, TrainableTokensLayer):
        return type(head.base_layer) is torch.nn.Linear
    return type(head) is torch.nn.Linear


def head_weight(head: Any) -> torch.Tensor:
    """(V, H): the head's weight as it is used, with trained rows of tokens put in."""
    if hasattr(head, "get_merged_weights"):
        merged: torch.Tensor = head.get_merged_weights(head.active_adapters)
        return merged
    weight: torch.Tensor = head.weight
    return weight


def plain_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """The same sum from whole float32 logits, as most recipes compute it."""
    shifted = torch.nn.functional.pad(labels_BT, (0, 1), value=-100)[:, 1:]
    return torch.nn.functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), shifted.flatten(), ignore_index=-100, reduction="sum"
    )
