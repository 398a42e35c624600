"""The step that everything measures: forward pass and summed loss of one batch.

The worker trains with it, evaluation sums it, the bench times it. Autocast happens here and
nowhere else, so that all of them do the same work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lab.data.batches import TokenSequence, collate
from lab.methods.parts.int8_products import without_outliers
from lab.models.weights import evaluating
from lab.train.loss import fused_loss, fused_token_losses, plain_loss, plain_token_losses

INPUTS = ("input_ids", "position_ids")


def uncompiled() -> Any:
    """Within, compiled layers run as they are: rows of any length, and generation, would have them
    recompiled each time, and torch stops compiling after eight of them."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()  # nothing is compiled
    return torch.compiler.set_stance("force_eager")


class HeadPassthrough(nn.Module):
    """Passes hidden states on. What else a model asks of its head, such as its weight's type, is
    the head's own."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.__dict__["head"] = head  # beside the modules: its parameters are not this one's

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["head"], name)

    def forward(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return hidden_BTH


@contextmanager
def without_head(model: nn.Module) -> Iterator[nn.Module]:
    """Within, the model returns hidden states (B, T, H) in place of logits; yields its head."""
    owner: Any = model
    head = owner.get_output_embeddings()
    owner.set_output_embeddings(HeadPassthrough(head))
    try:
        yield head
    finally:
        owner.set_output_embeddings(head)


def autocast(device: torch.device, precision: str) -> Any:
    """bfloat16 autocast for "mixed" and "bfloat16", nothing for "float32"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision != "float32")


def summed_loss(
    model: nn.Module, batch: dict[str, torch.Tensor], *, precision: str, loss: str
) -> torch.Tensor:
    """Sum in nats over the counted tokens of `batch` (see `lab.data.batches.collate`), a scalar.

    `model` may be wrapped (PEFT, DDP); only its head is taken out, and only for "fused".
    """
    inputs = {key: batch[key] for key in INPUTS}
    device = batch["input_ids"].device
    if loss == "plain":
        with autocast(device, precision):
            outputs = model(**inputs, use_cache=False)
        return plain_loss(drop_virtual_positions(outputs.logits, batch), batch["labels"])
    compute = torch.float32 if precision == "float32" else torch.bfloat16
    with without_head(unwrapped(model)) as head:
        with autocast(device, precision):
            outputs = model(**inputs, use_cache=False)
        return fused_loss(drop_virtual_positions(outputs.logits, batch), head, batch, compute)


def drop_virtual_positions(
    outputs_BTX: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The outputs at the batch's own tokens: prompt tuning puts virtual ones before them."""
    return outputs_BTX[:, -batch["input_ids"].shape[1] :]


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that owns the head, below DDP and the like."""
    inner = getattr(model, "module", model)
    return inner if isinstance(inner, nn.Module) else model


@torch.no_grad()
def fused_matches_plain(model: nn.Module, *, precision: str) -> bool:
    """Whether the fused loss equals the plain one on eight tokens.

    Architectures that change their logits after the head (soft caps, scales) fail this, and
    train with the plain loss instead.
    """
    device = next(model.parameters()).device
    ids = torch.arange(8, device=device).unsqueeze(0)
    batch = {
        "input_ids": ids,
        "labels": ids,
        "position_ids": ids,
        "loss_index": torch.arange(7, device=device),
        "targets": ids[0, 1:],
    }
    with evaluating(model):
        fused = summed_loss(model, batch, precision=precision, loss="fused")
        plain = summed_loss(model, batch, precision=precision, loss="plain")
    tolerance = 1e-4 if precision == "float32" else 2e-2
    return bool(torch.isclose(fused, plain, rtol=tolerance))


@torch.no_grad()
def is_causal(model: nn.Module, *, precision: str) -> bool:
    """Whether another last token leaves what the model says before it unchanged."""
    device = next(model.parameters()).device
    first = torch.arange(8, device=device).unsqueeze(0)
    second = first.clone()
    second[0, -1] = 9
    with evaluating(model), without_outliers(model), autocast(device, precision):
        logits = [model(input_ids=ids, use_cache=False).logits[0, :-1] for ids in (first, second)]
    max_difference = (logits[0].float() - logits[1].float()).abs().max()
    return bool(
        max_difference <= (1e-5 if precision == "float32" else 1e-2) * logits[0].float().std()
    )


@torch.no_grad()
def isolates_packed_sequences(model: nn.Module, *, precision: str) -> bool:
    """Whether a packed sequence gives the same logits as alone, when only restarting position ids
    separate it. What attends by other means (states, convolutions, biases by
    distance) may see over the border."""
    device = next(model.parameters()).device
    ids = torch.arange(8, device=device).unsqueeze(0)
    other = torch.tensor([[12, 11, 10, 9, 4, 5, 6, 7]], device=device)
    positions = torch.arange(4, device=device).repeat(2).unsqueeze(0)
    with evaluating(model), without_outliers(model), autocast(device, precision):
        logits = [
            model(input_ids=row, position_ids=positions, use_cache=False).logits[0, 4:]
            for row in (ids, other)
        ]
        single = {"input_ids": ids[:, 4:], "position_ids": positions[:, :4]}
        alone = model(**single, use_cache=False).logits[0]
    first, second = (row.float() for row in logits)
    moved = float((first - second).abs().max())
    if precision != "float32":  # a row of another length may round otherwise
        return bool(moved <= 1e-2 * first.std())
    moved = max(moved, float((first - alone.float()).abs().max()))
    return bool(moved <= 1e-4 * first.std())


def device_batches(
    rows: Sequence[TokenSequence], batch_size: int, pad: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of `rows` in order on the device, for evaluation."""
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size], pad)
        yield {key: value.to(device) for key, value in batch.items()}


@dataclass
class RowLosses:
    """What held-out rows come to, in their order: the summed loss of each in nats, and how many of
    its tokens the loss counts."""

    sums: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens)

    @property
    def mean(self) -> float:
        """Nats a counted token over all rows; NaN without one."""
        return sum(self.sums) / self.num_tokens if self.num_tokens else float("nan")


@torch.no_grad()
def row_losses(
    model: nn.Module,
    batches: Iterator[dict[str, torch.Tensor]],
    *,
    precision: str,
    loss: str,
    after_batch: Callable[[int], None] = lambda rows: None,
) -> RowLosses:
    """The loss of each row of all batches: neither it nor their mean depends on how the rows are
    cut into batches. `after_batch(rows so far)` reports progress."""
    losses = RowLosses()
    with evaluating(model):
        for batch in batches:
            with uncompiled():
                tokens_N = token_losses(model, batch, precision=precision, loss=loss).double()
            num_rows, width = batch["input_ids"].shape
            row_N = batch["loss_index"] // width
            losses.sums += tokens_N.new_zeros(num_rows).index_add_(0, row_N, tokens_N).tolist()
            losses.tokens += torch.bincount(row_N, minlength=num_rows).tolist()
            after_batch(len(losses.sums))
    return losses


def token_losses(
    model: nn.Module, batch: dict[str, torch.Tensor], *, precision: str, loss: str
) -> torch.Tensor:
    """(N,) loss in nats of each counted token: what `summed_loss` sums, without a gradient."""
    inputs = {key: batch[key] for key in INPUTS}
    device = batch["input_ids"].device
    if loss == "plain":
        with autocast(device, precision):
            outputs = model(**inputs, use_cache=False)
        return plain_token_losses(drop_virtual_positions(outputs.logits, batch), batch)
    compute = torch.float32 if precision == "float32" else torch.bfloat16
    with without_head(unwrapped(model)) as head:
        with autocast(device, precision):
            outputs = model(**inputs, use_cache=False)
        hidden = drop_virtual_positions(outputs.logits, batch)
        return fused_token_losses(hidden, head, batch, compute)


def evaluation_loss(
    model: nn.Module,
    batches: Iterator[dict[str, torch.Tensor]],
    *,
    precision: str,
    loss: str,
    after_batch: Callable[[int], None] = lambda rows: None,
) -> tuple[float, int]:
    """(mean nats a counted token, counted tokens) over the rows of all batches."""
    losses = row_losses(model, batches, precision=precision, loss=loss, after_batch=after_batch)
    return losses.mean, losses.num_tokens
