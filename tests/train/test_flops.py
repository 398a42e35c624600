"""Our count of operations against torch's own counter, to the percent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lab import methods
from lab.data.batches import collate, single_rows
from lab.data.chat_template import TokenizedExample
from lab.methods import Context
from lab.spec import RunSpec
from lab.train import flops
from lab.train.step import summed_loss


def eager(kind: str, vocabulary: int = 61) -> Any:
    """A model whose attention is plain products, so that torch counts model FLOPs and no
    recomputation; a small vocabulary, so that attention weighs against the head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "llama": {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48},
        "gpt2": {"n_inner": 48, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    }[kind]
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def measured(model: Any, rows: Any, loss: str) -> float:
    """Operations of a step as torch's own counter sees them."""
    batch = collate(rows, 0)
    counter = FlopCounterMode(display=False)
    with counter:
        summed_loss(model, batch, precision="float32", loss=loss).backward()
    return float(counter.get_total_flops())


def long_rows(length: int, count: int = 2) -> Any:
    ids = [place % 61 for place in range(length)]
    return single_rows([TokenizedExample(ids, [-100] * (length // 2) + ids[length // 2 :])] * count)


@pytest.mark.parametrize("loss", ["fused", "plain"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_attention_and_head_are_counted_to_the_percent(kind: str, loss: str) -> None:
    """Rows of 640 tokens: attention is most of the work, half of the tokens have a loss."""
    model, rows = eager(kind), long_rows(640)
    ours = flops.count(model, loss).of_rows(rows)
    assert ours == pytest.approx(measured(model, rows, loss), rel=0.01)


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_the_head_costs_what_the_loss_asks_of_it(loss: str) -> None:
    """A vocabulary of 5000 words: the plain loss multiplies every token with it, the fused one
    those that count."""
    model, rows = eager("llama", vocabulary=5000), long_rows(32)
    ours = flops.count(model, loss).of_rows(rows)
    assert ours == pytest.approx(measured(model, rows, loss), rel=0.01)


@pytest.mark.parametrize(("name", "length"), [("lora", 640), ("prompt", 160), ("prefix", 160)])
def test_frozen_layers_and_virtual_tokens_are_counted(name: str, length: int) -> None:
    """Frozen weights have no gradient of their own; virtual tokens go through every layer, those
    of a prefix are only attended to."""
    from tests.methods import tiny

    options = {"dropout": 0.0} if name == "lora" else {"num_virtual_tokens": 200, "init": "random"}
    spec = RunSpec.from_json({"method": {"name": name, **options}})
    method = methods.get(name)
    model, rows = eager("llama"), long_rows(length, count=1)
    model = method.apply(model, spec.method_config, Context(spec, tiny.make_tokenizer()))
    # the gradient of the first layer's input is counted, and needed only then
    model.get_input_embeddings().register_forward_hook(lambda *call: call[2].requires_grad_())
    ours = flops.count(model, "fused", method.virtual_tokens(spec.method_config)).of_rows(rows)
    assert ours == pytest.approx(measured(model, rows, "fused"), rel=0.01)


def test_packed_sequences_attend_to_themselves_only() -> None:
    from lab.data.batches import packed_rows
    from lab.train.flops import FlopCosts

    short = [TokenizedExample([1] * 3, [-100, 1, 1]), TokenizedExample([1] * 4, [-100, -100, 1, 1])]
    (row,) = packed_rows(short, 16)
    costs = FlopCosts(per_token=10.0, per_loss_token=100.0, per_token_pair=1000.0)
    assert costs.of(row) == 10 * 7 + 100 * 4 + 1000 * (3 * 3 + 4 * 4)
    both = FlopCosts(1.0, 0.0, 1000.0, virtual=2, prefix=5)
    (single,) = single_rows(short[:1])
    assert both.of(single) == (3 + 2) + 1000 * (5 * 10), "virtual tokens ask, a prefix answers"


def test_weights_in_four_bits_cost_what_they_are_unpacked_to(tmp_path: Any) -> None:
    from tests.methods import tiny

    tiny.make_model("llama", 64).save_pretrained(tmp_path)
    counted = {}
    for name in ("lora", "qlora"):
        spec = RunSpec.from_json({"method": {"name": name}})
        method = methods.get(name)
        model = tiny.load(tmp_path, **method.load_kwargs(spec.method_config))
        model = method.apply(model, spec.method_config, Context(spec))
        counted[name] = flops.count(model, "fused")
    assert counted["qlora"] == counted["lora"]
