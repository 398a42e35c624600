"""The shadow step: the worker's own training step on fake tensors, with a ledger of storages.

The model is built on the meta device, its weights are swapped for fakes (shapes and types, no
data), and one step of `lab.train.step` runs on them: forward, backward, clipping, optimizer,
then an evaluation batch. No weights are read and no GPU is needed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lab.memory.shadow.cuda_rules import cuda_rules
from lab.memory.shadow.ledger import Ledger, Peak
from lab.memory.shadow.real import materialise
from lab.memory.shadow.structure import Quantised, is_quantised, stored_bytes
from lab.methods import Method
from lab.spec import RunSpec
from lab.train.loss import few_chunks
from lab.train.step import summed_loss

LOSS_SEGMENTS = {"forward.after": "loss", "backward.after": "loss"}


@dataclass(frozen=True)
class Batch:
    """The shape of one micro-batch: full rows. `packed`: several sequences in a row."""

    rows: int
    length: int
    packed: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Trace:
    """The peaks of the segments of a step, and what CUDA's allocator reserves for it."""

    peaks: dict[str, Peak]
    reserved: int | None


def trace(
    model: Any,
    method: Method,
    spec: RunSpec,
    batch: Batch,
    loss: str,
    quantised: Quantised | None = None,
    *,
    on_gpu: bool,
    evaluates: bool = True,
    real: bool = False,
) -> Trace:
    """The peak of each segment of a step of `model` (on the meta device, method applied).

    Segments: load; forward.before, forward.layer.I, forward.after; backward in the other order;
    optimizer; evaluate. The model's tensors are fakes afterwards. Raises whatever an operation
    that cannot be traced raises. `real` runs it on the CPU with tensors that hold memory, to check
    the ledger itself.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    ledger = Ledger()
    with ExitStack() as stack:
        stack.enter_context(_no_collector())
        if real:
            materialise(model, "cpu", random=False)
        else:
            stack.enter_context(mode)
            stack.enter_context(few_chunks())
            become_fake(model, mode, quantised)
        model.train()
        weights = list(model.parameters())
        own = [weight for weight in weights if weight.requires_grad]
        optimizer = _optimizer(model, method, spec)
        stack.enter_context(ledger)
        if on_gpu:
            stack.enter_context(cuda_rules(packed=batch.packed))
        ledger.adopt([*weights, *model.buffers()], "weights")
        ledger.segment = "warm"
        _first_step(ledger, own, optimizer)
        inputs = batch_of(batch)
        ledger.adopt(inputs.values(), "activations")
        if spec.train.accumulation > 1:
            for weight in own:
                weight.grad = torch.empty_like(weight)
        stack.enter_context(_segments(model, ledger))
        ledger.segment = "forward.before"
        total = summed_loss(model, inputs, precision=spec.train.precision, loss=loss)
        total = total / batch.tokens
        ledger.segment = "backward.after"
        total.backward()
        ledger.name([weight.grad for weight in own if weight.grad is not None], "gradients")
        ledger.segment, ledger.module = "optimizer", ""
        if spec.train.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(own, spec.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del total
        if evaluates:
            ledger.segment = "evaluate"
            model.eval()
            with torch.no_grad():
                summed_loss(model, inputs, precision=spec.train.precision, loss=loss)
    found = ledger.peaks(LOSS_SEGMENTS)
    found.pop("warm", None)
    reserved = None
    if on_gpu:
        counted, reserved = ledger.blocks()
        for segment, peak in found.items():
            peak.counted = max(peak.total, counted.get(segment, 0))
    return Trace(found, reserved)


@contextmanager
def _no_collector() -> Iterator[None]:
    """The cycle collector walks over all that the libraries hold, again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def become_fake(model: Any, mode: FakeTensorMode, quantised: Quantised | None = None) -> None:
    """Swap every parameter and buffer for a fake on the CPU; tied ones stay tied. A quantised
    weight becomes as many bytes as it takes, and its layer one that unpacks it when it runs."""
    done: dict[int, Any] = {}
    device = torch.device("cpu")
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            if quantised is not None and is_quantised(weight):
                fake = torch.empty(stored_bytes(weight, quantised), dtype=torch.uint8)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
                module.forward = _unpacking(module, tuple(weight.shape))
                continue
            if id(weight) not in done:
                fake = FakeTensor(mode, weight.detach().to("meta"), device)
                made = torch.nn.Parameter(fake, requires_grad=weight.requires_grad)
                done[id(weight)] = made
            module._parameters[name] = done[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is None:
                continue
            if id(buffer) not in done:
                done[id(buffer)] = FakeTensor(mode, buffer.detach().to("meta"), device)
            module._buffers[name] = done[id(buffer)]
        for name, value in vars(module).items():  # plain attributes, as in rotary embeddings
            if isinstance(value, torch.Tensor) and value.is_meta:
                module.__dict__[name] = FakeTensor(mode, value.detach(), device)


def _unpacking(module: Any, shape: tuple[int, ...]) -> Any:
    """The forward of a quantised layer of `shape` (out, in)."""

    def forward(given: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = Unpacked.apply(given, module.weight, shape)
        return made if module.bias is None else made + module.bias.to(made.dtype)

    return forward


class Unpacked(torch.autograd.Function):
    """y = x W^T with W unpacked to 16 bits for the time of the product, forward and backward.
    x is not kept: W does not train."""

    @staticmethod
    def forward(ctx: Any, given: Any, packed: Any, shape: Any) -> Any:
        ctx.save_for_backward(packed)
        ctx.shape, ctx.dtype = shape, given.dtype
        narrow = given.to(torch.bfloat16)
        return (narrow @ narrow.new_empty(shape).t()).to(given.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        narrow = grads[0].to(torch.bfloat16)
        return (narrow @ narrow.new_empty(ctx.shape)).to(ctx.dtype), None, None


def _optimizer(model: Any, method: Method, spec: RunSpec) -> torch.optim.Optimizer:
    from lab.train.trainer import make_optimizer

    return make_optimizer(model, method, spec)


def _first_step(ledger: Ledger, own: list[Any], optimizer: torch.optim.Optimizer) -> None:
    """Optimizer state as every step but the first finds it."""
    for weight in own:
        weight.grad = torch.empty_like(weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    ledger.name(
        (
            value
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ),
        "optimizer",
    )


def batch_of(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as `lab.data.batches.collate` makes it, every token but the first counted."""
    shape = (batch.rows, batch.length)
    counted = batch.rows * (batch.length - 1)
    return {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "labels": torch.zeros(shape, dtype=torch.long),
        "position_ids": torch.arange(batch.length).repeat(batch.rows, 1),
        "loss_index": torch.zeros((counted,), dtype=torch.long),
        "targets": torch.zeros((counted,), dtype=torch.long),
    }


def decoder_layers(model: Any) -> list[Any]:
    """The repeated blocks of the model, in order: the longest list of modules of one length with
    the config's number of layers, else an empty list."""
    count = getattr(model.config, "num_hidden_layers", 0)
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    return []


@contextmanager
def _segments(model: Any, ledger: Ledger) -> Iterator[None]:
    """Hooks that say which layer the step is in, forward and backward, and which module."""
    layers = decoder_layers(model)
    handles: list[Any] = []

    def is_forward() -> bool:
        return ledger.segment.startswith("forward")

    def enter(index: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            if not is_forward():
                return
            given = args[0] if args else kwargs.get("hidden_states")
            if index == 0 and isinstance(given, torch.Tensor) and given.grad_fn is not None:
                given.grad_fn.register_prehook(lambda *_: move("backward.before"))
            ledger.segment = f"forward.layer.{index}"

        return hook

    def move(segment: str) -> None:
        ledger.segment = segment
        ledger.module = segment

    def leave(index: int) -> Any:
        def hook(_module: Any, _args: Any, made: Any) -> None:
            if not is_forward():
                return
            out = made[0] if isinstance(made, tuple) else made
            if isinstance(out, torch.Tensor) and out.grad_fn is not None:
                out.grad_fn.register_prehook(lambda *_: move(f"backward.layer.{index}"))
            if index == len(layers) - 1:
                ledger.segment = "forward.after"

        return hook

    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(enter(index), with_kwargs=True))
        handles.append(layer.register_forward_hook(leave(index)))
    path: list[str] = []
    for name, module in model.named_modules():

        def push(_module: Any, _args: Any, name: str = name) -> None:
            path.append(ledger.module)
            ledger.module = name

        def pop(_module: Any, _args: Any, _made: Any) -> None:
            ledger.module = path.pop() if path else ""

        handles.append(module.register_forward_pre_hook(push))
        handles.append(module.register_forward_hook(pop))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
