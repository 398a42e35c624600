"""The predicted peak of runs with rows of their own, held against what torch's allocator gives out.

On a CPU, in one process: the model is loaded and the method applied as the worker does, the data is
prepared, and the run's own largest micro-batches are trained on under torch's profiler, which sees
every tensor. Nothing is added for what a process holds beside its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lab import methods
from lab.data.batches import TrainingOrder, collate
from lab.data.prepare import PreparedData, prepare
from lab.data.row_sizes import row_sizes
from lab.forecast.memory_forecast import TraceOptions, batch_of, traced_step
from lab.forecast.resolve import resolve
from lab.forecast.trace.layer_repetition import step as trace_step
from lab.forecast.trace.trace_step import OneDevice
from lab.methods import Context
from lab.models import base_model, catalog, weights
from lab.spec import RunSpec
from lab.train.activation_checkpointing import checkpoint_activations
from lab.train.loop import StepConfig, step
from lab.train.optimizer import make_optimizer
from lab.train.step import token_losses

SECONDS = 60.0  # that the rows may take to be tokenised
SHORT = {"dataset": "builtin:persona-chats", "max_length": 512, "eval_fraction": 0.2}
LONG_HELD_OUT = {
    "dataset": "builtin:persona-chats",
    "eval_dataset": "builtin:everyday-instructions",
    "max_length": 512,
    "max_examples": 40,
}
# title: method, data, train
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "full, short rows": ({"name": "full"}, {**SHORT, "packing": "off"}, {}),
    "full, short rows, plain loss": (
        {"name": "full"},
        {**SHORT, "packing": "off"},
        {"loss_implementation": "plain"},
    ),
    "LoRA, short rows": ({"name": "lora"}, {**SHORT, "packing": "off"}, {}),
    "LoRA, grouped by length": (
        {"name": "lora"},
        {**SHORT, "packing": "off", "group_by_length": "on"},
        {},
    ),
    "LoRA, packed": ({"name": "lora"}, {**SHORT, "packing": "on", "max_length": 256}, {}),
    "LoRA, checkpointed": (
        {"name": "lora"},
        {**SHORT, "packing": "off"},
        {"activation_checkpointing": "on"},
    ),
    "LoRA, 4 passes a step": (
        {"name": "lora"},
        {**SHORT, "packing": "off"},
        {"batch_size": 2, "gradient_accumulation_steps": 4},
    ),
    "LoRA, longer rows held out": ({"name": "lora"}, {**LONG_HELD_OUT, "packing": "off"}, {}),
    "prefix, short rows": ({"name": "prefix"}, SHORT, {}),
    "QLoRA, short rows": ({"name": "qlora"}, {**SHORT, "packing": "off"}, {}),
}


def measure(title: str, model: str) -> dict[str, Any]:
    """Of one of CASES: bytes measured, predicted with the run's rows, and with full ones."""
    method_value, data, train = CASES[title]
    value = {
        "model": model,
        "method": method_value,
        "data": data,
        "train": {"activation_checkpointing": "off", "batch_size": 4, **train},
    }
    base = base_model.load_base(model)
    spec = resolve(RunSpec.from_json(value), has_bf16=False).fitted_to(base.model).spec
    method = methods.get(spec.method["name"])
    tokenizer = base.tokenizer
    method.extend_tokenizer(tokenizer, spec.method_config)
    rows = row_sizes(spec, tokenizer, SECONDS)
    assert rows is not None
    options = TraceOptions(on_gpu=False, packed=spec.data.packing == "on", rows=rows)
    own, full = (
        _traced_peak(base.config, spec, option) for option in (options, replace(options, rows=None))
    )
    measured = _measured_peak(spec, prepare(spec, tokenizer), tokenizer)
    return {
        "case": title,
        "rows": batch_of(spec, options).rows,
        "longest_row": batch_of(spec, options).longest,
        "max_length": spec.data.max_length,
        "measured": measured,
        "predicted": own,
        "with_full_rows": full,
        "error": own / measured - 1,
        "error_with_full_rows": full / measured - 1,
    }


def _traced_peak(config: Any, spec: RunSpec, options: TraceOptions) -> int:
    """Bytes of tensors at the highest point of the traced step."""
    trace, _ = trace_step(traced_step(config, spec, options))
    return max(peak.total for peak in trace.peaks.values())


def _measured_peak(spec: RunSpec, data: PreparedData, tokenizer: Any) -> int:
    """Bytes that the allocator has given out at the highest point of the run's largest passes."""
    train, method = spec.train, methods.get(spec.method["name"])
    extra = method.load_kwargs(spec.method_config)
    model = weights.load_model(catalog.resolve(spec.model), torch.float32, **extra)
    context = Context(spec, tokenizer)
    method.prepare(model, spec.method_config, context)
    model = method.apply(model, spec.method_config, context)
    if train.activation_checkpointing == "on":
        checkpoint_activations(model, train.checkpointed_layers)
    optimizer = make_optimizer(model, method, spec)
    config = replace(  # nothing is pruned in so few steps
        StepConfig.of(method, spec.method_config, train, train.loss_implementation),
        on_optimizer_step=lambda model, step: None,
    )
    passes, held_out = _largest_passes(spec, data, tokenizer.pad_token_id)
    own = [weight for weight in model.parameters() if weight.requires_grad]

    def learn(batch: Any) -> None:
        model.train()
        if train.gradient_accumulation_steps > 1:  # those of earlier passes
            for weight in own:
                weight.grad = torch.zeros_like(weight)
        step(OneDevice(), model, optimizer, [batch], config, 1)

    def evaluate(batch: Any) -> None:
        model.eval()
        with torch.no_grad():
            token_losses(model, batch, precision=train.precision, loss=train.loss_implementation)

    learn(passes[0])  # the optimizer's state is made
    resting = _resting_bytes(model, optimizer)
    work = [(learn, batch) for batch in passes] + [(evaluate, batch) for batch in held_out]
    return resting + max(
        peak_allocated(partial(go, batch)) + _bytes_of(batch.values()) for go, batch in work
    )


def _largest_passes(spec: RunSpec, data: PreparedData, pad: int) -> tuple[list[Any], list[Any]]:
    """The micro-batches of the run, and of its evaluations, than which none is larger in both
    tokens and counted tokens."""
    size = spec.train.batch_size
    bucket = size if spec.data.group_by_length == "on" else 0
    order = TrainingOrder(data.train, spec.train.seed, bucket)
    count = int(spec.train.epochs * len(data.train))
    trained = [order[index] for index in range(count)]

    def batches(rows: Any) -> Iterator[Any]:
        for start in range(0, len(rows), size):
            yield collate(rows[start : start + size], pad)

    return _not_exceeded(list(batches(trained))), _not_exceeded(list(batches(data.held_out)))


def _not_exceeded(batches: list[Any]) -> list[Any]:
    sizes = [(batch["input_ids"].numel(), batch["targets"].numel()) for batch in batches]
    return [
        batch
        for index, (batch, own) in enumerate(zip(batches, sizes, strict=True))
        if not any(
            other[0] >= own[0] and other[1] >= own[1] and (other != own or k < index)
            for k, other in enumerate(sizes)
            if k != index
        )
    ]


def _bytes_of(tensors: Any) -> int:
    storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def _resting_bytes(model: Any, optimizer: Any) -> int:
    state = [
        value
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    ]
    quantised = [
        value
        for weight in model.parameters()
        for owner in (getattr(weight, "quant_state", None),)
        for nested in (owner, getattr(owner, "state2", None))
        if nested is not None
        for value in vars(nested).values()
        if isinstance(value, torch.Tensor)
    ]
    return _bytes_of([*model.parameters(), *model.buffers(), *state, *quantised])


def peak_allocated(work: Callable[[], object]) -> int:
    """Bytes more than at its start that torch's allocator has given out at the highest point of
    `work`, without a mode around it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    live = highest = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            highest = max(highest, live)
    return highest
