"""The fused loss is the plain one, in value and in gradient; packing changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lab.data.batches import collate, packed_rows, single_rows
from lab.data.template import Tokens
from lab.train import loss as losses
from lab.train.loss import FusedLinearCrossEntropy
from lab.train.step import evaluation_loss, fused_is_exact, is_causal, summed_loss

HEADS = {"num_attention_heads": 4}


def model_of(kind: str) -> Any:
    """A random model of two layers, without dropout."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, **HEADS, num_key_value_heads=2))
    if kind == "qwen3":
        return Qwen3ForCausalLM(
            Qwen3Config(
                **shape, **HEADS, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True
            )
        )
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**shape, **HEADS))


KINDS = ["llama", "qwen3", "gpt2", "neox"]


def sequences() -> list[Tokens]:
    torch.manual_seed(1)
    made = []
    for length in (5, 17, 9, 23, 12, 30):
        ids = torch.randint(0, 97, (length,)).tolist()
        made.append(Tokens(ids, [-100, -100, *ids[2:]]))
    return made


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("bias", [True, False])
def test_fused_equals_cross_entropy(
    chunk: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk * 50)
    torch.manual_seed(0)
    made = [torch.randn(23, 16), torch.randn(50, 16), torch.randn(50) if bias else None]
    targets = torch.randint(0, 50, (23,))
    results = []
    for fused in (True, False):
        hidden, weight, offset = (
            None if one is None else one.clone().requires_grad_(True) for one in made
        )
        if fused:
            total = FusedLinearCrossEntropy.apply(hidden, weight, offset, targets, torch.float32)
        else:
            logits = torch.nn.functional.linear(hidden, weight, offset)
            total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        (total * 0.5).backward()
        results.append([total, hidden.grad, weight.grad, *([offset.grad] if bias else [])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_gives_the_same_gradients_fused_and_plain(kind: str) -> None:
    batch = collate(single_rows(sequences()[:3]), pad=0)
    grads = []
    for loss in ("fused", "plain"):
        model = model_of(kind)
        summed_loss(model, batch, precision="float32", loss=loss).backward()
        grads.append({name: weight.grad for name, weight in model.named_parameters()})
        assert type(model.get_output_embeddings()) is torch.nn.Linear, "the head is back"
    for name, ours in grads[0].items():
        torch.testing.assert_close(ours, grads[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_the_losses_of_single_rows(kind: str) -> None:
    model = model_of(kind)
    tokens = sequences()
    values = []
    for rows, size in (
        (single_rows(tokens), 1),
        (single_rows(tokens), 4),
        (packed_rows(tokens, 48), 2),
    ):
        parts = [collate(rows[place : place + size], pad=0) for place in range(0, len(rows), size)]
        values.append(evaluation_loss(model, iter(parts), precision="float32", loss="fused"))
    assert values[0][1] == values[1][1] == values[2][1] == sum(one.counted for one in tokens)
    assert values[1][0] == pytest.approx(values[0][0], abs=1e-5), "batch size"
    assert values[2][0] == pytest.approx(values[0][0], abs=1e-5), "packing"


def test_an_architecture_that_changes_its_logits_is_noticed() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        final_logit_softcapping=0.05, pad_token_id=0,
    )  # fmt: skip
    assert not fused_is_exact(Gemma2ForCausalLM(config), precision="float32")
    assert all(fused_is_exact(model_of(kind), precision="float32") for kind in KINDS)


def test_a_model_that_looks_ahead_is_noticed() -> None:
    from transformers import BertConfig, BertLMHeadModel

    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64}
    bert = BertLMHeadModel(BertConfig(**shape, num_hidden_layers=2, num_attention_heads=4))
    assert not is_causal(bert, precision="float32")
    assert all(is_causal(model_of(kind), precision="float32") for kind in KINDS)


def test_bfloat16_stays_near(tiny_batch: dict[str, torch.Tensor]) -> None:
    model = model_of("llama")
    exact = summed_loss(model, tiny_batch, precision="float32", loss="fused")
    near = summed_loss(model, tiny_batch, precision="mixed", loss="fused")
    assert float(near) == pytest.approx(float(exact), rel=2e-2)


@pytest.fixture
def tiny_batch() -> dict[str, torch.Tensor]:
    return collate(single_rows(sequences()[:2]), pad=0)


def test_a_model_that_looks_at_its_head_trains_with_the_fused_loss() -> None:
    """Mamba asks for the type of the head's weight before it calls it."""
    from transformers import MambaConfig, MambaForCausalLM

    from lab.train.step import fused_is_exact

    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(**shape))
    names = {name for name, _ in model.named_parameters()}
    assert fused_is_exact(model, precision="float32")
    assert {name for name, _ in model.named_parameters()} == names, "the head is back"
