"""The fused loss is the plain one, in value and in gradient; packing changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.run_rows import peak_allocated
from lab.data.batches import collate, packed_rows, single_rows
from lab.data.chat_template import TokenizedExample
from lab.forecast.trace.allocation_tracker import AllocationTracker
from lab.train import loss as losses
from lab.train.loss import FusedLinearCrossEntropy
from lab.train.step import evaluation_loss, fused_matches_plain, is_causal, summed_loss

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


def sequences() -> list[TokenizedExample]:
    torch.manual_seed(1)
    created = []
    for length in (5, 17, 9, 23, 12, 30):
        ids = torch.randint(0, 97, (length,)).tolist()
        created.append(TokenizedExample(ids, [-100, -100, *ids[2:]]))
    return created


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
            None if row is None else row.clone().requires_grad_(True) for row in made
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
    assert (
        values[0][1]
        == values[1][1]
        == values[2][1]
        == sum(token.num_loss_tokens for token in tokens)
    )
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
    assert not fused_matches_plain(Gemma2ForCausalLM(config), precision="float32")
    assert all(fused_matches_plain(model_of(kind), precision="float32") for kind in KINDS)


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

    from lab.train.step import fused_matches_plain

    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(**shape))
    names = {name for name, _ in model.named_parameters()}
    assert fused_matches_plain(model, precision="float32")
    assert {name for name, _ in model.named_parameters()} == names, "the head is back"


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, torch.Tensor) and not func.is_view:
                self.numel = max(self.numel, one.numel())
        return result


def test_no_more_logits_live_at_a_time_than_a_chunk_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """3000 tokens, 2000 words, 4 hidden numbers: all logits would be six million numbers."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 40_000)
    hidden = torch.randn(3000, 4, requires_grad=True)
    weight = torch.randn(2000, 4, requires_grad=True)
    targets = torch.randint(0, 2000, (3000,))
    with Largest() as largest:
        total = FusedLinearCrossEntropy.apply(hidden, weight, None, targets, torch.float32)
        total.backward()
    assert largest.numel <= 40_000, "the logits of a chunk are the largest tensor that is made"
    assert largest.numel > 20_000, "chunks are no smaller than they may be"


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_without_a_gradient_no_gradient_is_made(loss: str) -> None:
    """The checks before training ask a base whose weights could all train: the gradient of a head
    of 128,256 words would be a gigabyte."""
    batch = collate(single_rows(sequences()[:1]), pad=0)
    model = model_of("llama")
    with torch.no_grad(), Largest() as largest:
        value = summed_loss(model, batch, precision="float32", loss=loss)
    assert largest.numel < 97 * 32, "the head's gradient would be the largest tensor"
    assert not value.requires_grad
    expected = summed_loss(model, batch, precision="float32", loss=loss)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("vocabulary", "hidden", "on_gpu", "trains", "elements"),
    [
        (128_256, 2048, False, True, 1 << 24),
        (128_256, 2048, True, False, 1 << 25),
        (128_256, 2048, True, True, 128_256 * 2048 // 4),
        (49_152, 576, True, True, 1 << 25),
        (151_936, 8192, True, True, 1 << 26),
    ],
)
def test_a_chunk_is_as_large_as_its_device_likes(
    vocabulary: int, hidden: int, on_gpu: bool, trains: bool, elements: int
) -> None:
    """On a GPU larger, and larger still beside the gradient of a head that trains."""
    head = torch.empty(vocabulary, hidden, device="meta")
    with losses.trace_few_chunks(on_gpu=on_gpu):
        assert losses._chunk_rows(head, trains=trains) == elements // vocabulary
    assert elements <= losses.largest_chunk(on_gpu=on_gpu)
    assert losses._chunk_rows(head, trains=trains) == (1 << 24) // vocabulary, "no trace, no GPU"


def test_on_a_gpu_the_heads_gradient_is_summed_without_a_second_one() -> None:
    """In the trace of a GPU: the products of 16 bits go into the sum of 32 at once."""
    tracker = AllocationTracker(on_gpu=True)
    with FakeTensorMode(), losses.trace_few_chunks(on_gpu=True):
        hidden = torch.empty(64, 32, dtype=torch.bfloat16)
        grad, total = torch.empty(64, 4096, dtype=torch.bfloat16), torch.empty(4096, 32)
        with tracker:
            tracker.register([hidden, grad, total], "activations")
            losses._add_product(total, grad.t(), hidden)
        added = tracker.log()
        logits = losses._logits(hidden, torch.empty(4096, 32, dtype=torch.bfloat16), None)
    assert {event.operation for event in added.events} == {"given"}, "no tensor but those there"
    assert sum(added.launches.values()) == 1, "one kernel"
    assert logits.dtype == torch.float32


def test_on_a_processor_the_softmax_is_divided_without_a_quotient_beside_it() -> None:
    logits, sums = torch.rand(64, 4096), torch.rand(64, 1) + 1
    expected = (logits / sums).bfloat16()
    results: list[torch.Tensor] = []
    peak = peak_allocated(lambda: results.append(losses._divided(logits, sums, torch.bfloat16)))
    assert torch.equal(results[0], expected)
    assert peak <= 2 * logits.numel() + 1024, "the result in 16 bits, and nothing in 32"


def test_many_chunks_in_sixteen_bits_sum_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient summed in bfloat16 over 500 chunks loses the small ones."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(500, 8).bfloat16(), torch.randn(40, 8).bfloat16()
    targets = torch.randint(0, 40, (500,))
    exact = weight.double().requires_grad_(True)
    logits = hidden.double() @ exact.T
    total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    total.backward()
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 40)
    ours = weight.clone().requires_grad_(True)
    summed = FusedLinearCrossEntropy.apply(hidden, ours, None, targets, torch.bfloat16)
    summed.backward()
    assert summed.dtype == torch.float32 and ours.grad is not None
    assert ours.grad.dtype == torch.bfloat16, "a gradient has the type of its weight"
    assert float(summed) == pytest.approx(float(total), rel=5e-3)
    far = (ours.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert float(far) < 5e-3, "rounded once, not once a chunk"


def test_only_what_needs_a_gradient_gets_one() -> None:
    made = [torch.randn(9, 8), torch.randn(20, 8), torch.randn(20)]
    targets = torch.randint(0, 20, (9,))
    for which in range(3):
        ours, theirs = (
            [row.clone().requires_grad_(place == which) for place, row in enumerate(made)]
            for _ in range(2)
        )
        FusedLinearCrossEntropy.apply(*ours, targets, torch.float32).backward()
        logits = torch.nn.functional.linear(*theirs)
        torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert (one.grad is None) == (place != which)
            if place == which:
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_few_chunks_stand_for_all_only_within() -> None:
    """Measuring memory leaves out chunks; training afterwards must not."""
    with losses.trace_few_chunks(on_gpu=False):
        assert len(losses._chunks(1000, 10)) <= 4
    assert list(losses._chunks(1000, 10)) == list(range(0, 1000, 10))


def test_the_plain_loss_scores_the_next_token_of_every_place_that_counts() -> None:
    """By hand: place t says the token at t + 1, and the last place of a row says nothing."""
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 7)
    labels = torch.tensor([[-100, 3, -100, 5], [-100, -100, 0, -100]])
    expected = sum(
        -float(torch.log_softmax(logits[row, place - 1], dim=0)[labels[row, place]])
        for row, place in ((0, 1), (0, 3), (1, 2))
    )
    assert float(losses.plain_loss(logits, labels)) == pytest.approx(expected, rel=1e-6)


def test_heads_that_are_more_than_a_matrix_are_not_plain() -> None:
    import peft

    class Scaled(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 0.5 * super().forward(hidden)

    assert losses.is_plain(torch.nn.Linear(4, 9)) and not losses.is_plain(Scaled(4, 9))
    model = model_of("llama")
    lora = peft.LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    assert not losses.is_plain(peft.get_peft_model(model, lora).get_output_embeddings())
    whole = peft.LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    copied = peft.get_peft_model(model_of("llama"), whole)
    assert losses.is_plain(copied.base_model.model.lm_head)
    odd = model_of("llama")
    odd.lm_head = Scaled(32, 97)
    assert not losses.is_plain(peft.get_peft_model(odd, whole).base_model.model.lm_head)


@pytest.mark.parametrize("bias", [True, False])
def test_a_heads_bias_and_trained_rows_are_part_of_the_fused_loss(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-J and Phi have a bias on the head; trainable tokens put rows of their own into it. The
    same in an evaluation, chunk by chunk."""
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    batch = collate(single_rows(sequences()[:2]), pad=0)
    if bias:
        shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64}
        model: Any = PhiForCausalLM(
            PhiConfig(**shape, num_hidden_layers=1, num_attention_heads=4, resid_pdrop=0.0)
        )
        torch.nn.init.normal_(model.lm_head.bias, std=2.0)
    else:
        import peft

        settings = peft.TrainableTokensConfig(token_indices=[3, 7, 9], task_type="CAUSAL_LM")
        model = peft.get_peft_model(model_of("qwen3"), settings)  # head and embeddings are one
        for name, weight in model.named_parameters():
            if "trainable_tokens_delta" in name:
                torch.nn.init.normal_(weight, std=2.0)
    model.eval()
    fused, plain = (
        float(summed_loss(model, batch, precision="float32", loss=loss))
        for loss in ("fused", "plain")
    )
    assert fused == pytest.approx(plain, rel=1e-5)
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 5 * 97)
    for loss in ("fused", "plain"):
        mean, count = evaluation_loss(model, iter([batch]), precision="float32", loss=loss)
        assert mean * count == pytest.approx(plain, rel=1e-5), f"the {loss} loss of an evaluation"


def test_the_softmax_is_computed_in_float32_whatever_the_products_are_in() -> None:
    """Only the product is rounded to bfloat16: then the loss agrees to five digits."""
    torch.manual_seed(0)
    hidden, weight = 3 * torch.randn(7, 8).bfloat16(), torch.randn(300, 8).bfloat16()
    targets = torch.randint(0, 300, (7,))
    expected = torch.nn.functional.cross_entropy(
        (hidden @ weight.T).float(), targets, reduction="sum"
    )
    output = FusedLinearCrossEntropy.apply(hidden, weight, None, targets, torch.bfloat16)
    assert float(output) == pytest.approx(float(expected), rel=1e-5)
