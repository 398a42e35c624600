"""The shadow step: the worker's own training step on fake tensors, with a tracker of storages.

The model is built on the meta device, its weights are swapped for fakes (shapes and types, no
data), and `lab.train.loop.step` runs on them: forward, backward, clipping, optimizer,
then an evaluation batch. No weights are read and no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import (
    FakeTensorMode,
    unset_fake_temporarily,
)

from lab import collector
from lab.forecast.trace.allocation_log import Log
from lab.forecast.trace.allocation_tracker import AllocationTracker
from lab.forecast.trace.cuda_emulation import emulate_cuda, masks
from lab.forecast.trace.fake_tensors import become_fake
from lab.forecast.trace.materialise import materialise
from lab.forecast.trace.meta_model import Quantised
from lab.methods import Method
from lab.models.decoder_structure import layers_if_any
from lab.optimizers import PAGED_ELEMENTS
from lab.spec import RunSpec
from lab.train.loop import StepConfig, step
from lab.train.loss import trace_few_chunks
from lab.train.optimizer import make_optimizer
from lab.train.step import token_losses


@dataclass(frozen=True)
class Batch:
    """The shape of one micro-batch. `packed`: several sequences in a row. `counted`: tokens that
    the loss counts; None: all but the first of each row. `held_out`: that of the evaluation, None
    where it is the same; without a row there is no evaluation."""

    rows: int
    length: int
    packed: bool = False
    counted: int | None = None
    held_out: Batch | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest row, trained on or held out."""
        return max(self.length, self.held_out.length if self.held_out else 0)


def record(
    model: Any,
    method: Method,
    spec: RunSpec,
    batch: Batch,
    loss: str,
    quantised: Quantised | None = None,
    *,
    on_gpu: bool,
    real: bool = False,
) -> Log:
    """The log of a step of `model` (on the meta device, method applied).

    Segments: load; warm; forward.before, forward.layer.I, forward.after; backward in the other
    order; optimizer; evaluate as forward. The model's tensors are fakes afterwards. Raises
    whatever an operation that cannot be traced raises. `real` runs it on the CPU with tensors that
    hold memory, to check the tracker itself.
    """
    tracker = AllocationTracker(on_gpu=on_gpu)
    with _traced(model, quantised, spec.train.optimizer, on_gpu=on_gpu, real=real):
        weights = _Weights(model)
        optimizer = make_optimizer(model, method, spec)
        with tracker, emulate_cuda() if on_gpu else nullcontext(), masks(packed=batch.packed):
            for weight in [*model.parameters(), *model.buffers()]:
                tracker.register([weight], "weights", weights.layer_of.get(id(weight)))
            tracker.segment = "warm"
            with _paged_states(tracker) if on_gpu else nullcontext():
                _first_step(tracker, weights, optimizer)
            weights.give_scores(tracker, method.score_copies)
            tracker.segment = "forward.before"
            if spec.train.gradient_accumulation_steps > 1:
                weights.give_gradients(tracker)
            inputs = batch_of(batch)
            tracker.register(inputs.values(), "activations")

            def end_phase(phase: str) -> None:
                if phase == "forward":
                    tracker.segment = "backward.after"
                elif phase == "backward":
                    weights.tag_gradients(tracker)
                    weights.tag_state(tracker, optimizer)  # of an update inside the backward pass
                    tracker.segment, tracker.module = "optimizer", ""

            # fakes hold no numbers, so that nothing can be pruned by them
            config = replace(
                StepConfig.of(method, spec.method_config, spec.train, loss),
                on_optimizer_step=lambda model, step: None,
            )
            with _segments(model, tracker):
                step(OneDevice(), model, optimizer, [inputs], config, 1, end_phase=end_phase)
            tracker.segment = "evaluate.before"
            held_out = batch.held_out or batch
            if held_out.rows:
                if held_out is not batch:
                    inputs = batch_of(held_out)
                    tracker.register(inputs.values(), "activations")
                model.eval()
                with _segments(model, tracker), torch.no_grad(), masks(packed=held_out.packed):
                    token_losses(model, inputs, precision=spec.train.precision, loss=loss)
            return tracker.log()


def is_of_tracing(error: BaseException) -> bool:
    """Whether `error` comes of tensors without data, and not of the model."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedFakeTensorException,
        UnsupportedOperatorException,
    )
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    kinds = (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedFakeTensorException,
        UnsupportedOperatorException,
        GuardOnDataDependentSymNode,
        NotImplementedError,
    )
    return isinstance(error, kinds) or "fake" in str(error).lower()


class OneDevice:
    """What a step asks of an Accelerator, on one CPU. A real one would settle the device for the
    whole process, and a process that traces may train on a GPU later."""

    device = torch.device("cpu")

    def no_sync(self, model: Any) -> Any:
        return nullcontext()

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return tensor

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, weights: list[torch.Tensor], max_norm: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(weights, max_norm)


@contextmanager
def _traced(
    model: Any, quantised: Quantised | None, optimizer: str, *, on_gpu: bool, real: bool = False
) -> Iterator[None]:
    """Within, the model's tensors are fakes (or, if `real`, hold memory), and train."""
    with ExitStack() as stack:
        stack.enter_context(collector.paused())
        if real:
            materialise(model, "cpu", random=False)
        else:
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            stack.enter_context(mode)
            stack.enter_context(trace_few_chunks(on_gpu=on_gpu))
            if optimizer.endswith("8bit"):
                stack.enter_context(_real_tables())
            become_fake(model, mode, quantised)
        model.train()
        yield


@contextmanager
def _real_tables() -> Iterator[None]:
    """The levels of bitsandbytes' 8-bit optimizers are worked out with numbers, which fakes have
    not."""
    from bitsandbytes import functional

    make = functional.create_dynamic_map

    def real(*args: Any, **kwargs: Any) -> torch.Tensor:
        with unset_fake_temporarily():
            table: torch.Tensor = make(*args, **kwargs)
        return table

    with mock.patch.object(functional, "create_dynamic_map", real):
        yield


@contextmanager
def _paged_states(tracker: AllocationTracker) -> Iterator[None]:
    """Moments that a paged optimizer of bitsandbytes asks CUDA for are not in the allocator."""
    import bitsandbytes.optim.optimizer as library

    make = library.Optimizer8bit.get_state_buffer

    def state(self: Any, weight: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        buffer: torch.Tensor = make(self, weight, dtype)
        if self.is_paged and weight.numel() >= PAGED_ELEMENTS:
            tracker.forget(buffer)
        return buffer

    with mock.patch.object(library.Optimizer8bit, "get_state_buffer", state):
        yield


class _Weights:
    """The weights that train, and which decoder layer each weight is in."""

    def __init__(self, model: Any) -> None:
        self.trainable = [weight for weight in model.parameters() if weight.requires_grad]
        self.scores: list[torch.Tensor] = []
        self.layer_of = {
            id(tensor): index
            for index, layer in enumerate(layers_if_any(model))
            for tensor in (*layer.parameters(), *layer.buffers())
        }

    def give_gradients(self, tracker: AllocationTracker) -> None:
        for weight in self.trainable:
            weight.grad = torch.empty_like(weight)
        self.tag_gradients(tracker)

    def give_scores(self, tracker: AllocationTracker, copies: int) -> None:
        """What a method keeps beside the optimizer's state. How it comes by it needs numbers."""
        for weight in self.trainable:
            scores = [torch.empty_like(weight) for _ in range(copies)]
            tracker.tag(scores, "optimizer", self.layer_of.get(id(weight)))
            self.scores += scores

    def tag_gradients(self, tracker: AllocationTracker) -> None:
        for weight in self.trainable:
            if weight.grad is not None:
                tracker.tag([weight.grad], "gradients", self.layer_of.get(id(weight)))

    def tag_state(self, tracker: AllocationTracker, optimizer: torch.optim.Optimizer) -> None:
        for weight in self.trainable:
            state = optimizer.state.get(weight, {})
            tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
            tracker.tag(tensors, "optimizer", self.layer_of.get(id(weight)))


def _first_step(
    tracker: AllocationTracker, weights: _Weights, optimizer: torch.optim.Optimizer
) -> None:
    """Optimizer state as every step but the first finds it."""
    weights.give_gradients(tracker)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    weights.tag_state(tracker, optimizer)


def batch_of(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as `lab.data.batches.collate` makes it."""
    shape = (batch.rows, batch.length)
    counted = batch.rows * (batch.length - 1) if batch.counted is None else batch.counted
    return {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "labels": torch.zeros(shape, dtype=torch.long),
        "position_ids": torch.arange(batch.length).repeat(batch.rows, 1),
        "loss_index": torch.zeros((counted,), dtype=torch.long),
        "targets": torch.zeros((counted,), dtype=torch.long),
    }


@contextmanager
def _segments(model: Any, tracker: AllocationTracker) -> Iterator[None]:
    """Hooks that say which layer the step is in, forward and backward, and which module."""
    layers = layers_if_any(model)
    handles: list[Any] = []

    def phase() -> str:
        """forward or evaluate; "" while a layer is recomputed in the backward pass."""
        name = tracker.segment.partition(".")[0]
        return name if name in ("forward", "evaluate") else ""

    def enter(index: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            if not phase():
                return
            hidden = args[0] if args else kwargs.get("hidden_states")
            if index == 0 and isinstance(hidden, torch.Tensor) and hidden.grad_fn is not None:
                hidden.grad_fn.register_prehook(lambda *_: move("backward.before"))
            tracker.segment = f"{phase()}.layer.{index}"

        return hook

    def move(segment: str) -> None:
        tracker.segment = segment
        tracker.module = segment

    def leave(index: int) -> Any:
        def hook(_module: Any, _args: Any, result: Any) -> None:
            if not phase():
                return
            out = result[0] if isinstance(result, tuple) else result
            if isinstance(out, torch.Tensor) and out.grad_fn is not None:
                out.grad_fn.register_prehook(lambda *_: move(f"backward.layer.{index}"))
            if index == len(layers) - 1:
                tracker.segment = f"{phase()}.after"

        return hook

    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(enter(index), with_kwargs=True))
        handles.append(layer.register_forward_hook(leave(index)))
    path: list[str] = []
    for name, module in model.named_modules():

        def push(_module: Any, _args: Any, name: str = name) -> None:
            path.append(tracker.module)
            tracker.module = name

        def pop(_module: Any, _args: Any, _result: Any) -> None:
            tracker.module = path.pop() if path else ""

        handles.append(module.register_forward_pre_hook(push))
        handles.append(module.register_forward_hook(pop))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
