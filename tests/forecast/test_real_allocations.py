"""The traced step against what torch's own allocator gives out for the same step on a processor.

The trace emulates what the autograd engine does with ordinary tensors, which no dispatch mode can
see: with one the engine sums gradients in another way. The profiler sees it as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bench.run_rows import peak_allocated
from lab import methods
from lab.data.row_sizes import RowSizes
from lab.forecast.memory_forecast import TraceOptions
from lab.forecast.memory_forecast import batch_of as forecast_batch
from lab.forecast.trace.materialise import materialise
from lab.forecast.trace.meta_model import build
from lab.forecast.trace.trace_step import Batch, OneDevice, batch_of, record
from lab.spec import RunSpec
from lab.train.loop import StepConfig, step
from lab.train.optimizer import make_optimizer
from lab.train.step import token_losses
from tests.forecast.test_outline import spec_of


def rows_of(spec: RunSpec) -> Batch:
    return Batch(spec.train.batch_size, spec.data.max_length)


def config_of(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    sizes = {
        "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "tie_word_embeddings": True, "pad_token_id": 0,
    }  # fmt: skip
    return AutoConfig.for_model(kind, **sizes | changes)


def allocated(config: Any, spec: RunSpec, batch: Batch | None = None) -> int:
    """Bytes at the peak of the second step, by torch's profiler, without any mode around it; of the
    evaluation after it, where `batch` has one of its own."""
    method = methods.get(spec.method["name"])
    model, _, _ = build(config, spec, method)
    with torch.no_grad():
        materialise(model, "cpu", random=True)
    model.train()
    optimizer = make_optimizer(model, method, spec)
    settings = StepConfig.of(method, spec.method_config, spec.train, spec.train.loss_implementation)
    batch = batch or rows_of(spec)
    inputs = batch_of(batch)
    held_out = batch_of(batch.held_out) if batch.held_out else None

    def train() -> None:
        step(OneDevice(), model, optimizer, [inputs], settings, 1)
        if held_out is not None:
            kind = spec.train.loss_implementation
            with torch.no_grad():
                token_losses(model.eval(), held_out, precision=spec.train.precision, loss=kind)
            model.train()

    train()
    tensors = [*model.parameters(), *model.buffers(), *inputs.values()]
    tensors += [] if held_out is None else held_out.values()
    tensors += [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    resting = {item.untyped_storage()._cdata: item.untyped_storage().nbytes() for item in tensors}
    return sum(resting.values()) + peak_allocated(train)


def traced(config: Any, spec: RunSpec, batch: Batch | None = None) -> int:
    method = methods.get(spec.method["name"])
    model, quantised, _ = build(config, spec, method)
    log = record(
        model,
        method,
        spec,
        batch or rows_of(spec),
        spec.train.loss_implementation,
        quantised,
        on_gpu=False,
        real=True,
    )
    peaks = log.read(on_gpu=False).peaks
    evaluates = batch is not None
    return max(p.total for name, p in peaks.items() if evaluates or name[:8] != "evaluate")


# kind, method, tokens a row, settings, sizes. With few tokens the peak is where the gradients of
# the two uses of a tied matrix are added up, with more of them in the loss.
CASES: dict[str, tuple[str, str, int, dict[str, Any], dict[str, Any]]] = {
    "tied, plain loss": ("llama", "full", 16, {"loss_implementation": "plain"}, {}),
    "tied, fused loss": ("llama", "full", 16, {}, {}),
    "capped logits": ("gemma2", "full", 16, {"loss_implementation": "plain"}, {}),
    "apart, plain loss": (
        "llama",
        "full",
        128,
        {"loss_implementation": "plain"},
        {"tie_word_embeddings": False},
    ),
    "chunks of the loss": ("llama", "full", 128, {}, {}),
    "frozen head": ("qwen2", "lora", 128, {"activation_checkpointing": "on"}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_traced_peak_is_what_the_allocator_gives_out(case: str) -> None:
    kind, method, length, train, changes = CASES[case]
    config = config_of(kind, **changes)
    spec = spec_of(
        method, 2, length, **{"precision": "float32", "loss_implementation": "fused"} | train
    )
    assert traced(config, spec) == pytest.approx(allocated(config, spec), rel=0.003)


SMALL, LARGE = Batch(2, 8, counted=3), Batch(8, 96, counted=500)


@pytest.mark.parametrize(
    ("loss", "held_out"), [("fused", SMALL), ("fused", LARGE), ("plain", LARGE)]
)
def test_what_counts_in_the_loss_and_what_is_held_out_have_sizes_of_their_own(
    loss: str, held_out: Batch
) -> None:
    config = config_of("llama")
    spec = spec_of("lora", 2, 512, precision="float32", loss_implementation=loss)
    batch = Batch(2, 48, counted=11, held_out=held_out)
    need = traced(config, spec, batch)
    assert need == pytest.approx(allocated(config, spec, batch), rel=0.003)
    alike = traced(config, spec, Batch(2, 48, held_out=Batch(0, 0)))
    assert abs(need / alike - 1) > 0.05, "Other rows need something else."


def test_a_trace_takes_the_largest_pass_of_the_run_and_of_its_evaluations() -> None:
    spec = RunSpec.from_json(
        {"data": {"max_length": 128, "packing": "off"}, "train": {"batch_size": 2}}
    )
    train, none = np.array([[60, 30], [50, 20]]), np.zeros((0, 2), np.int64)

    def shape(held_out: np.ndarray) -> Batch:
        rows = RowSizes(128, train, held_out)
        return forecast_batch(spec, TraceOptions(on_gpu=False, rows=rows))

    assert shape(np.array([[90, 40]])) == Batch(2, 60, False, 50, Batch(1, 90, False, 40))
    assert shape(none) == Batch(2, 60, False, 50, Batch(0, 0)), "There is no evaluation."
    full = forecast_batch(spec, TraceOptions(on_gpu=False, packed=True))
    assert full == Batch(2, 128, True), "The data is not read."
