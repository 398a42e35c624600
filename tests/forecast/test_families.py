"""Architectures whose layers are no plain attention: a default trains, or is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lab import methods
from lab.errors import SpecError
from lab.forecast.memory_forecast import TraceOptions, predict_memory
from lab.forecast.resolve import Resolution
from lab.forecast.trace.materialise import materialise
from lab.forecast.trace.meta_model import build
from lab.forecast.trace.trace_step import Batch, OneDevice, batch_of
from lab.methods.lora import LoraConfig
from lab.models.empty_model import meta_model
from lab.preflight.answers import estimate, plan
from lab.spec import RunSpec
from lab.train.loop import StepConfig, step
from lab.train.optimizer import make_optimizer
from tests.forecast.test_outline import spec_of

SIZES: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
STATES = {"mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 32}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "mamba2": {
        "vocab_size": 256, "hidden_size": 64, "state_size": 16, "num_hidden_layers": 2,
        "num_heads": 4, "head_dim": 32, "n_groups": 2, "chunk_size": 32,
    },
    "falcon_h1": SIZES | STATES | {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "bamba": SIZES | STATES
    | {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16},
    "mixtral": SIZES | {"num_local_experts": 4},
    "qwen3_moe": SIZES | EXPERTS | {"head_dim": 16, "num_experts": 4},
    "qwen3_next": SIZES | EXPERTS
    | {
        "head_dim": 16, "num_experts": 4, "shared_expert_intermediate_size": 32,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
    },
    "deepseek_v3": SIZES | EXPERTS
    | {
        "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    },
    "llama4_text": SIZES
    | {
        "head_dim": 16, "intermediate_size_mlp": 128, "num_local_experts": 4,
        "interleave_moe_layer_step": 1, "num_experts_per_tok": 1, "attention_chunk_size": 64,
    },
}  # fmt: skip


def config_of(kind: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **SHAPES[kind])


def tiny_spec(method: str) -> RunSpec:
    return spec_of(method, 2, 32, precision="float32", loss_implementation="plain")


def train(config: Any, spec: RunSpec) -> torch.Tensor:
    """The loss of one step with tensors that hold data."""
    method = methods.get(spec.method["name"])
    model, _, _ = build(config, spec, method)
    with torch.no_grad():
        materialise(model, "cpu", random=True)
    model.train()
    settings = StepConfig.of(method, spec.method_config, spec.train, "plain")
    optimizer = make_optimizer(model, method, spec)
    return step(OneDevice(), model, optimizer, [batch_of(Batch(2, 32))], settings, 1).losses


@pytest.mark.parametrize("kind", SHAPES)
def test_the_default_of_lora_trains_and_is_traced_and_what_it_leaves_out_is_told(
    kind: str,
) -> None:
    config = config_of(kind)
    resolution = Resolution(tiny_spec("lora")).fitted_to(meta_model(config))
    spec = resolution.spec
    assert torch.isfinite(train(config, spec)).all()
    memory = predict_memory(config, spec, TraceOptions(on_gpu=True, traced=False), 10**12)
    assert memory.how.is_traced and memory.fits, memory.trace_error
    changed = {
        name: value
        for name, value in vars(spec.method_config).items()
        if value != getattr(LoraConfig(), name)
    }
    notes = " ".join(resolution.notes)
    if kind in ("mamba2", "falcon_h1", "llama4_text"):
        assert changed.keys() == {"target_modules"}
        last = "router" if kind == "llama4_text" else "out_proj"
        assert last not in changed["target_modules"] and last in notes
    elif kind == "bamba":
        assert not changed and not notes
    else:
        assert changed == {"dropout": 0.0} and "experts" in notes


@pytest.mark.parametrize("kind", ["mamba2", "bamba", "deepseek_v3"])
def test_a_method_with_which_the_models_own_step_fails_is_refused(
    kind: str, tmp_path: Path
) -> None:
    """Prefix tuning: no keys and values to put anything before. No figure, and no "fits"."""
    config = config_of(kind)
    with pytest.raises((ValueError, RuntimeError, AttributeError)):
        train(config, tiny_spec("prefix"))
    config.save_pretrained(tmp_path)
    value = {"model": str(tmp_path), "method": "prefix", "data": {"max_length": 32}}
    for ask in (estimate, plan):
        with pytest.raises(SpecError) as refused:
            ask(value, {"memory_bytes": 10**12})
        (problem,) = refused.value.problems
        assert "Prefix tuning does not work with this model" in problem.message
        assert "Choose another method" in problem.message


def test_a_value_that_somebody_chose_is_not_changed() -> None:
    spec = tiny_spec("lora")
    config = meta_model(config_of("mixtral"))
    chosen = RunSpec.from_json(spec.to_json() | {"method": {"name": "lora", "dropout": 0.1}})
    same = Resolution(chosen)
    assert same.fitted_to(config) == same
    pattern = RunSpec.from_json(
        spec.to_json() | {"method": {"name": "lora", "target_modules": ["q_proj"]}}
    )
    same = Resolution(pattern)
    assert same.fitted_to(config) == same, "Attention alone takes dropout."
