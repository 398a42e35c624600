"""The evaluation loss is a mean over tokens, and looking at a model leaves it as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from lab import methods
from lab.data.batches import collate, single_rows
from lab.data.chat_template import TokenizedExample
from lab.methods import Context
from lab.spec import RunSpec
from lab.train import step
from lab.train.step import (
    autocast,
    drop_virtual_positions,
    evaluation_loss,
    fused_matches_plain,
    is_causal,
    isolates_packed_sequences,
    row_losses,
    summed_loss,
)
from tests.methods import tiny


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.make_model("llama")


def batches(sizes: list[int]) -> list[dict[str, torch.Tensor]]:
    """One batch for each size: rows of different lengths, of which only the end counts."""
    created, number = [], 0
    for size in sizes:
        rows = []
        for _ in range(size):
            number += 1
            ids = [(7 * number + place) % 90 + 2 for place in range(4 + 3 * number)]
            rows.append(TokenizedExample(ids, [-100] * 3 + ids[3:]))
        created.append(collate(single_rows(rows), pad=0))
    return created


def mean_of_all_tokens(model: Any, parts: list[dict[str, torch.Tensor]]) -> tuple[float, int]:
    """(mean, count) over every counted token, row by row with torch's own cross-entropy."""
    losses: list[torch.Tensor] = []
    for batch in parts:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            with torch.no_grad():
                logits = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0, :-1]
            losses.append(
                torch.nn.functional.cross_entropy(
                    logits, labels[1:], ignore_index=-100, reduction="none"
                )[labels[1:] != -100]
            )
    values = torch.cat(losses)
    return float(values.mean()), len(values)


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_every_counted_token_weighs_the_same(model: Any, loss: str) -> None:
    """Batches of one and of three rows: neither a mean of batches nor one of rows."""
    parts = batches([1, 3, 2])
    rows: list[int] = []
    found, count = evaluation_loss(
        model, iter(parts), precision="float32", loss=loss, after_batch=rows.append
    )
    expected, tokens = mean_of_all_tokens(model, parts)
    assert count == tokens
    assert found == pytest.approx(expected, rel=1e-5)
    assert rows == [1, 4, 6], "progress is counted in rows, up to and with the batch"


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_each_row_has_its_own_loss(model: Any, loss: str) -> None:
    """As a plain sum over the counted tokens of the row alone, whatever it is padded to."""
    parts = batches([3, 2])
    losses = row_losses(model, iter(parts), precision="float32", loss=loss)
    single = [
        {key: batch[key][row : row + 1] for key in ("input_ids", "labels")}
        for batch in parts
        for row in range(len(batch["input_ids"]))
    ]
    alone = [mean_of_all_tokens(model, [batch]) for batch in single]
    assert losses.tokens == [count for _, count in alone]
    assert losses.sums == pytest.approx([mean * count for mean, count in alone], rel=1e-5)


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_an_evaluation_leaves_virtual_positions_out_as_training_does(loss: str) -> None:
    spec = RunSpec.from_json({"method": {"name": "prompt", "num_virtual_tokens": 5}})
    method, context = methods.get("prompt"), Context(spec, tiny.make_tokenizer())
    tuned = method.apply(tiny.make_model("llama"), spec.method_config, context).eval()
    (batch,) = batches([3])
    losses = row_losses(tuned, iter([batch]), precision="float32", loss=loss)
    total = float(summed_loss(tuned, batch, precision="float32", loss=loss))
    assert sum(losses.sums) == pytest.approx(total, rel=1e-5)


def test_rows_of_any_length_are_measured_by_layers_as_they_are(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled ones would be compiled anew for each length."""
    within: list[bool] = []

    @contextmanager
    def uncompiled() -> Iterator[None]:
        within.append(True)
        yield
        within.pop()

    def look(*_: Any) -> None:
        assert within, "a layer runs compiled"

    monkeypatch.setattr(step, "uncompiled", uncompiled)
    hook = model.model.layers[0].register_forward_pre_hook(look)
    try:
        evaluation_loss(model, iter(batches([1, 2])), precision="float32", loss="fused")
    finally:
        hook.remove()


def test_no_token_to_score_is_no_number(model: Any) -> None:
    empty = collate(single_rows([TokenizedExample([5, 6, 7], [-100] * 3)]), pad=0)
    for parts in ([], [empty]):
        value, count = evaluation_loss(model, iter(parts), precision="float32", loss="fused")
        assert math.isnan(value) and count == 0


def dropping() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64,
        resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("is_training", [True, False])
def test_measuring_switches_dropout_off_and_puts_the_mode_back(is_training: bool) -> None:
    model = dropping()
    parts = batches([2])
    expected, _ = mean_of_all_tokens(model.eval(), parts)
    state = torch.get_rng_state()
    model.train(is_training)

    def check(what: str) -> None:
        assert model.training is is_training, f"{what} leaves the model in another mode"
        assert torch.equal(torch.get_rng_state(), state), f"{what} draws random numbers"

    loss, _ = evaluation_loss(model, iter(parts), precision="float32", loss="fused")
    assert loss == pytest.approx(expected, rel=1e-5), "dropout is off while it is measured"
    check("an evaluation")
    assert fused_matches_plain(model, precision="float32")
    check("the check of the fused loss")
    assert is_causal(model, precision="float32")
    check("the check of causality")
    assert isolates_packed_sequences(model, precision="float32")
    check("the check of packing")
    assert all(weight.grad is None for weight in model.parameters())

    def fail() -> Any:
        yield parts[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluation_loss(model, fail(), precision="float32", loss="fused")
    check("an evaluation that is interrupted")


def test_the_head_is_back_where_the_forward_pass_fails(model: Any) -> None:
    head = model.get_output_embeddings()
    broken = batches([1])[0] | {"position_ids": torch.zeros(3, 3, 3)}
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        summed_loss(model, broken, precision="float32", loss="fused")
    assert model.get_output_embeddings() is head


def test_the_loss_counts_the_batchs_own_positions_behind_virtual_ones() -> None:
    outputs = torch.arange(2 * 7 * 3).view(2, 7, 3)
    own = drop_virtual_positions(outputs, {"input_ids": torch.zeros(2, 4)})
    assert torch.equal(own, outputs[:, 3:])


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("float32", torch.float32), ("mixed", torch.bfloat16), ("bfloat16", torch.bfloat16)],
)
def test_products_are_in_the_precision_that_was_chosen(precision: str, kind: torch.dtype) -> None:
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_head_and_layers_compute_in_the_same_precision(model: Any, precision: str) -> None:
    """What the head is multiplied with: the fused loss has no autocast of its own."""
    from torch.utils._python_dispatch import TorchDispatchMode

    kinds: set[torch.dtype] = set()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten.mm.default and tiny.VOCABULARY in args[1].shape:
                kinds.add(args[1].dtype)
            return func(*args, **(kwargs or {}))

    with Products():
        summed_loss(model, batches([2])[0], precision=precision, loss="fused")
    assert kinds == {torch.float32 if precision == "float32" else torch.bfloat16}


def test_checks_find_a_model_that_looks_one_token_ahead() -> None:
    """The very last token is what the check changes; a model that peeks at it is found."""

    class Peeking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(20, 20)
            self.device = torch.device("cpu")

        def forward(self, input_ids: Any, use_cache: bool = False) -> Any:
            from types import SimpleNamespace

            rows = self.table(input_ids)
            return SimpleNamespace(logits=rows + 0.1 * torch.roll(rows, -1, dims=1))

    assert not is_causal(Peeking(), precision="float32")
