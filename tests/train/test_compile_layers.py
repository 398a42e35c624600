"""The pass that compiles the layers leaves no trace in weights, gradients or chance."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lab.train import compile_layers
from tests.methods import tiny


def with_dropout() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.5,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("make", [with_dropout, lambda: tiny.make_model("llama")])
def test_every_decoder_layer_is_compiled_and_nothing_else(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: compiled.append(layer))
    model = make()
    found = compile_layers.compile_layers(model)
    layers = list(model.transformer.h if hasattr(model, "transformer") else model.model.layers)
    assert found == compiled == layers


def test_the_first_pass_leaves_everything_as_it_was() -> None:
    model = with_dropout().eval()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    state = torch.get_rng_state()
    batch = tiny.toy_batch()
    assert compile_layers.first_pass(model, [], batch, precision="float32", loss="fused") == ""
    assert torch.equal(torch.get_rng_state(), state), "dropout would draw other masks"
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert model.training, "what is compiled is the training's pass"


class Failing(torch.nn.Linear):
    def __init__(self, error: BaseException) -> None:
        super().__init__(2, 2)
        self.error = error

    def get_output_embeddings(self) -> Any:
        raise self.error


def test_a_compiler_that_fails_is_given_up_with_its_reason() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.compile(backend="eager")
    failed = compile_layers.first_pass(
        Failing(RuntimeError("no C++ compiler\nand more")), [layer], tiny.toy_batch(),
        precision="float32", loss="fused",
    )  # fmt: skip
    assert failed == "RuntimeError: no C++ compiler"
    assert layer._compiled_call_impl is None, "the layer runs plain"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("9 GiB")])
def test_running_out_of_memory_is_no_fault_of_the_compiler(error: BaseException) -> None:
    with pytest.raises(type(error)):
        compile_layers.first_pass(
            Failing(error), [], tiny.toy_batch(), precision="float32", loss="fused"
        )
