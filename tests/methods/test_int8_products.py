"""The 8-bit products of a GPU, with the kernels that bitsandbytes has for a processor."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.autograd import _functions

from lab import methods
from lab.methods.parts.int8_products import forget_inputs, without_outliers
from lab.models import weights
from lab.models.catalog import ModelSource
from lab.models.weights import evaluating
from lab.train.step import is_causal, isolates_packed_sequences
from tests.methods import tiny

LIBRARY_PRODUCT = _functions.MatMul8bitLt


@pytest.fixture(autouse=True)
def library_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_functions, "MatMul8bitLt", LIBRARY_PRODUCT)


def state_of(weight: torch.Tensor) -> Any:
    state = _functions.MatmulLtState()
    state.CB, state.SCB, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.half())
    state.has_fp16_weights, state.threshold = False, 6.0
    return state


def product(scale: float) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """(output, gradient of the input, whether the input lives on) of one product."""
    torch.manual_seed(0)
    inputs = (scale * torch.randn(5, 16)).bfloat16().requires_grad_()
    weight = torch.randn(8, 16)
    state = state_of(weight)
    hidden = inputs * 1
    alive = weakref.ref(hidden)
    output = _functions.MatMul8bitLt.apply(hidden, state.CB, None, None, state)
    del hidden
    gc.collect()
    is_kept = alive() is not None
    output.sum().backward()
    assert inputs.grad is not None
    return output.detach(), inputs.grad, is_kept


@pytest.mark.parametrize("scale", [1.0, 4.0], ids=["no outlier", "outliers"])
def test_an_input_that_no_gradient_needs_is_let_go(scale: float) -> None:
    output, gradient, is_kept = product(scale)
    assert is_kept, "bitsandbytes keeps it; if it no longer does, `forget_inputs` can go"
    forget_inputs()
    forget_inputs()  # a second method in the same process
    ours, own_gradient, is_kept = product(scale)
    assert not is_kept
    assert torch.equal(ours, output) and torch.equal(own_gradient, gradient)


@pytest.mark.parametrize("weight_trains", [True, False])
def test_only_the_input_of_a_frozen_weight_is_let_go(
    weight_trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Product(LIBRARY_PRODUCT):  # type: ignore[misc, valid-type]
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            ctx.tensors = inputs
            return 7

    monkeypatch.setattr(_functions, "MatMul8bitLt", Product)
    forget_inputs()
    context = SimpleNamespace(needs_input_grad=(True, weight_trains))
    assert _functions.MatMul8bitLt.forward(context, 1, 2, 3) == 7
    assert context.tensors == ((1, 2, 3) if weight_trains else (None, None, None))


def test_a_row_is_rounded_by_itself_where_no_outlier_is_looked_for() -> None:
    """A large value in one row takes its column out of the 8 bits of every row."""
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear8bitLt(16, 8, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.state = state_of(torch.randn(8, 16))
    rows = torch.randn(2, 16).bfloat16()
    beside = rows.clone()
    beside[1, 3] = 50.0

    def first_row(inputs: torch.Tensor) -> torch.Tensor:
        state = layer.state
        with torch.no_grad():
            output: torch.Tensor = _functions.MatMul8bitLt.apply(
                inputs, state.CB, None, None, state
            )
        return output[0]

    assert not torch.equal(first_row(rows), first_row(beside)), "an outlier beside it"
    with without_outliers(torch.nn.Sequential(layer)):
        assert torch.equal(first_row(rows), first_row(beside))
    assert layer.state.threshold == 6.0
    with pytest.raises(RuntimeError), without_outliers(torch.nn.Sequential(layer)):
        raise RuntimeError
    assert layer.state.threshold == 6.0, "whatever happens within"


@pytest.mark.parametrize("is_packed", [False, True], ids=["causal", "packed rows apart"])
def test_a_base_in_8_bits_starts_although_its_rows_round_together(
    is_packed: bool, tmp_path: Path
) -> None:
    """With a low threshold nearly every column has an outlier in some row."""
    tiny.make_model("llama", 64).save_pretrained(tmp_path)
    method = methods.get("lora8bit")
    config = method.config(threshold=0.5)
    source = ModelSource("tiny", str(tmp_path), local_only=True)
    model = weights.load_model(source, torch.bfloat16, **method.load_kwargs(config))
    method.prepare(model, config, methods.Context(None, tiny.make_tokenizer()))
    assert _functions.MatMul8bitLt is not LIBRARY_PRODUCT, "its inputs are let go"
    ids = torch.arange(8).unsqueeze(0)
    other = torch.cat([ids[:, :7], torch.tensor([[90]])], dim=1)
    with torch.no_grad(), evaluating(model):
        moved = [model(input_ids=row, use_cache=False).logits[0, :7] for row in (ids, other)]
    assert not torch.equal(*moved), "the last token moves what is said before it"
    ask = isolates_packed_sequences if is_packed else is_causal
    assert ask(model, precision="bfloat16")
