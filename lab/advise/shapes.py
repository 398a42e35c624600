"""Shapes of a shipped config's linear layers, from its JSON alone: for answers within a moment.

Exact counts of any model and method come from the planner, which builds the model on the meta
device; tests hold these closed forms to it.
"""

from __future__ import annotations

import math
from typing import Any

from lab.advise.case import nearest_config
from lab.models import shipped_configs


def linear_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """{name: (d_in, d_out)} of the linear layers of one decoder layer."""
    if config.get("model_type") == "gpt2":
        width = int(config["n_embd"])
        return {
            "c_attn": (width, 3 * width),
            "c_proj": (width, width),
            "c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or width // heads)
    keys = int(config.get("num_key_value_heads") or heads) * head
    if config.get("model_type") == "phi3":
        return {
            "qkv_proj": (width, heads * head + 2 * keys),
            "o_proj": (heads * head, width),
            "gate_up_proj": (width, 2 * inner),
            "down_proj": (inner, width),
        }
    return {
        "q_proj": (width, heads * head),
        "k_proj": (width, keys),
        "v_proj": (width, keys),
        "o_proj": (heads * head, width),
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }


def layers(config: dict[str, Any]) -> int:
    return int(config.get("num_hidden_layers") or config["n_layer"])


def lora_count(config: dict[str, Any], rank: int, names: tuple[str, ...] = ()) -> int:
    """Trainable parameters: the sum over targets of r (d_in + d_out); all layers without names."""
    shapes = linear_shapes(config)
    each = sum(sum(shapes[name]) for name in (names or tuple(shapes)))
    return rank * each * layers(config)


def lora_parameters(model: str, parameters: float) -> float:
    """Of rank 1 on all linear layers. A model whose config is not shipped takes the nearest one's
    in proportion to the square root of its parameters: they grow with width times width, an adapter
    with width."""
    kind, _, name = model.partition(":")
    if kind == "config":
        config = shipped_configs.get(name)
        exact = lora_count(config.config, 1)
        if not parameters or abs(parameters / config.parameters - 1) < 1e-9:
            return float(exact)
        return exact * math.sqrt(parameters / config.parameters)
    nearest = nearest_config(parameters or 1e9)
    return lora_count(nearest.config, 1) * math.sqrt((parameters or 1e9) / nearest.parameters)
