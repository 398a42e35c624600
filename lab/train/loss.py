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
# On a GPU every chunk reads the whole head from memory, twice, so that fewer chunks are faster (see
# docs/measured.md). A head that trains has a gradient in float32, which every chunk reads and
# writes: there a chunk may take a quarter of that.
GPU_CHUNK_ELEMENTS = 1 << 25
LARGEST_GPU_CHUNK_ELEMENTS = 1 << 26


# Whether tensors without data stand for those of a GPU; None where tensors are what they are.
_traced_on_gpu: ContextVar[bool | None] = ContextVar("traced_on_gpu", default=None)


@contextmanager
def trace_few_chunks(*, on_gpu: bool) -> Iterator[None]:
    """For tensors without data, which stand for those of a GPU or of a processor: each chunk but
    the last needs the same memory, so a few stand for all; an even number for an even number, since
    blocks of the allocator take turns."""
    token = _traced_on_gpu.set(on_gpu)
    try:
        yield
    finally:
        _traced_on_gpu.reset(token)


def _is_on_gpu(tensor: torch.Tensor) -> bool:
    traced = _traced_on_gpu.get()
    return tensor.is_cuda if traced is None else traced


def _chunks(count: int, step: int) -> Sequence[int]:
    starts = range(0, count, step)
    if _traced_on_gpu.get() is None or len(starts) <= 4:
        return starts
    return [*starts[: 3 - len(starts) % 2], starts[-1]]


def _chunk_rows(weight_VH: torch.Tensor, *, trains: bool) -> int:
    """How many tokens' logits are alive at a time."""
    elements = CHUNK_ELEMENTS
    if _is_on_gpu(weight_VH):
        largest = min(weight_VH.numel() // 4, LARGEST_GPU_CHUNK_ELEMENTS)
        elements = max(GPU_CHUNK_ELEMENTS, largest if trains else 0)
    return max(1, elements // len(weight_VH))


def largest_chunk(*, on_gpu: bool) -> int:
    """The most logits that are ever alive at a time."""
    return LARGEST_GPU_CHUNK_ELEMENTS if on_gpu else CHUNK_ELEMENTS


def _logits(hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: Any) -> torch.Tensor:
    """(N, V) in float32; a GPU adds up and stores them in float32, a processor in the factors'
    type."""
    if hidden_NH.dtype != torch.float32 and _is_on_gpu(hidden_NH):
        logits_NV = torch.mm(hidden_NH, weight_VH.t(), out_dtype=torch.float32)
    else:
        logits_NV = torch.mm(hidden_NH, weight_VH.t()).float()
    if bias_V is not None:
        logits_NV += bias_V.float()
    return logits_NV


def _losses(logits_NV: torch.Tensor, targets_N1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses, sums), both (N, 1). In place: afterwards `logits_NV` divided by `sums` is the
    softmax. No second tensor of their size exists."""
    at_target = logits_NV.gather(1, targets_N1)
    top = logits_NV.amax(dim=1, keepdim=True)
    sums = logits_NV.sub_(top).exp_().sum(dim=1, keepdim=True)
    return sums.log().add_(top).sub_(at_target), sums


def _divided(logits_NV: torch.Tensor, sums_N1: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """logits / sums in `dtype`, rounded once. A GPU writes it at once; a processor's division into
    another type would make the quotient in float32 first."""
    if dtype == torch.float32 or not _is_on_gpu(logits_NV):
        return logits_NV.div_(sums_N1).to(dtype)
    narrow = logits_NV.new_empty(logits_NV.shape, dtype=dtype)
    return torch.div(logits_NV, sums_N1, out=narrow)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a b, where `total` is in float32; without a tensor beside it on a GPU."""
    if _traced_on_gpu.get():
        total.zero_()  # torch 2.11 has no fake of the product below; this is one kernel as well
    elif a.dtype != torch.float32 and _is_on_gpu(a):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += torch.mm(a, b)


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
        step = _chunk_rows(weight_VH, trains=needs_weight)
        for start in _chunks(hidden_NH.shape[0], step):
            part = slice(start, start + step)
            hidden = hidden_NH[part].to(compute)
            targets = targets_N[part].unsqueeze(1)
            logits = _logits(hidden, weight, bias_V)
            losses, sums = _losses(logits, targets)
            total += losses.sum()
            # the softmax less one at the target, rounded once
            logits.scatter_add_(1, targets, -sums)
            grad = _divided(logits, sums, compute)
            del logits  # else it would live until the next chunk's exist
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=torch.float32)
            if grad_hidden is not None:
                grad_hidden[part] = torch.mm(grad, weight)
            if grad_weight is not None:
                _add_product(grad_weight, grad.t(), hidden)
            del grad
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
    if not torch.is_grad_enabled():  # the function would make gradients, the head's own among them
        return fused_token_losses(hidden_BTH, head, batch, compute).sum()
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
    step = _chunk_rows(weight, trains=False)
    for start in _chunks(hidden_NH.shape[0], step):
        part = slice(start, start + step)
        logits = _logits(hidden_NH[part].to(compute), weight, bias)
        losses.append(_losses(logits, batch["targets"][part].unsqueeze(1))[0][:, 0])
        del logits  # else it would live until the next chunk's exist
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
