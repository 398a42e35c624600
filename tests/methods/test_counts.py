"""Exact parameter counts of published models, with the figure that an article printed beside.

Shapes are those of the published configs. Whether the printed figure holds is part of the test:
several do not, and the reason stands beside them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lab import methods
from lab.methods import Context, lokr
from lab.models.empty_model import meta_model

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
        "vocab_size": 50257,
    },
    "Llama-3.2-3B": {
        "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "Llama-3-8B": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256, "tie_word_embeddings": False,
    },
    "7B without grouped heads": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "vocab_size": 32000, "tie_word_embeddings": False,
    },
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SEVEN = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def model_of(name: str) -> Any:
    from transformers import AutoConfig

    return meta_model(AutoConfig.for_model(**SHAPES[name]))


# claim, model, method, options, (trainable, total) as printed, (trainable, total) as they are, and
# the setting (model, options) whose count was printed, where it is another one
CLAIMS = [
    ("B3", "Llama-3.2-3B", "full", {}, (3_212_749_824, 3_212_749_824), None, None),
    # the 8B model's adapter: 32 x 16 x ((4096 + 4096) + (4096 + 1024)), on the 3B model's total
    (
        "B4", "Llama-3.2-3B", "lora", {"rank": 16, "target_modules": ["q_proj", "v_proj"]},
        (6_815_744, 3_219_565_568), (4_587_520, 3_217_337_344),
        ("Llama-3-8B", {"rank": 16, "target_modules": ["q_proj", "v_proj"]}),
    ),
    # exactly twice what it is: rank 32
    (
        "C6", "Llama-3-8B", "lora", {"rank": 16, "target_modules": SEVEN},
        (83_886_080, 8_114_147_328), (41_943_040, 8_072_204_288),
        ("Llama-3-8B", {"rank": 32, "target_modules": SEVEN}),
    ),
    # all seven projections in place of the four of attention
    (
        "C7", "Llama-3-8B", "qlora", {"rank": 64, "target_modules": ATTENTION},
        (167_772_160, 8_201_932_800), (54_525_952, 8_084_787_200),
        ("Llama-3-8B", {"rank": 64, "target_modules": SEVEN}),
    ),
    # 12 x 8 x (768 + 2304): printed is half of it, as if c_attn were square, and the base's total
    (
        "D3", "gpt2", "lora", {"rank": 8, "target_modules": ["c_attn"]},
        (147_456, 124_439_808), (294_912, 124_734_720),
        ("gpt2", {"rank": 4, "target_modules": ["c_attn"]}),
    ),
    ("B8", "7B without grouped heads", "prefix", {"num_virtual_tokens": 20}, (5_242_880, None),
     None, None),
]  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim[0])
def test_counts_of_published_models(claim: Any) -> None:
    _, shape, method_name, options, printed, actual, instead = claim
    method = methods.get(method_name)
    config, context = method.config(**options), Context(None)
    model = model_of(shape)
    base = sum(weight.numel() for weight in model.parameters())
    closed = method.trainable_count(model, config, context)
    if instead is not None:
        other = method.trainable_count(model_of(instead[0]), method.config(**instead[1]), context)
        assert closed != printed[0] == other, "printed is the count of another setting"
    with torch.device("meta"):
        applied = method.apply(model, config, context)
    counted = sum(weight.numel() for weight in applied.parameters() if weight.requires_grad)
    assert closed == counted, "the closed form against the model itself"
    total = base if method_name == "full" else base + counted
    assert (counted, total) == (actual or (printed[0], printed[1] or total))
    assert ((counted, total) == printed) is (claim[0] == "B3")


@pytest.mark.parametrize("factor", [-1, 1, 4, 5, 100])
def test_lokr_splits_a_size_as_peft_does(factor: int) -> None:
    from peft.tuners.lokr.layer import factorization

    for size in (16, 30, 32, 49, 97, 576, 768, 1536):
        assert lokr.split(size, factor) == factorization(size, factor), size


def test_a_bottleneck_of_64_in_a_layer_of_width_4096() -> None:
    """B13 prints 528,128 for two modules. One module has h m + m + m h + h = 528,448 parameters,
    two have 1,056,896: the figure is 320 below one module, and half of what it says it is."""
    h, m, printed = 4096, 64, 528_128
    one_module = (h * m + m) + (m * h + h)
    assert (one_module, 2 * one_module) == (528_448, 1_056_896)
    assert one_module - printed == 320
