"""Prefix tuning: trained keys and values before every attention layer.

attention(q, [P_k; K], [P_v; V]) with P_k, P_v (n, d_kv) trained in each of the L layers, d_kv =
key-value heads x head size. Real tokens keep their positions behind the prefix. Not equal to the
base at step 0: every query sees the prefix. Trainable = n 2 L d_kv; with projection, the prefix is
made from e (n, d_kv) by an MLP of width m: n d_kv + (d_kv m + m) + (m 2 L d_kv + 2 L d_kv), of
which only the output is kept for answering.
Source: Li and Liang 2021, arXiv:2101.00190.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import LabError, Problem
from lab.methods import Context, Unsupported, register
from lab.methods.parts.peft_method import PeftMethod, is_meta
from lab.methods.parts.virtual_tokens import (
    NO_16_BITS,
    NO_PACKING,
    NO_START,
    STARTS,
    count_option,
    start_ids,
    start_lines,
    start_problems,
    text_option,
)
from lab.schema import option

DEVIATION = 0.02  # of a random start: PEFT's own, 1, drowns the real keys


@dataclass(frozen=True, kw_only=True)
class PrefixConfig:
    num_virtual_tokens: int = count_option()
    init: str = option(
        "vocabulary",
        "Initialisation",
        "From the base model's keys and values of random tokens (vocabulary), of a text, or "
        "small random numbers. Always random with prefix projection.",
        choices=STARTS,
        formerly="start",
    )
    text: str = text_option()
    projection: bool = option(
        False,
        "Prefix projection",
        "Generate the prefix with an MLP during training, which is easier to train.",
    )
    projection_width: int = option(
        512,
        "Projection size",
        "Hidden size of that MLP (PEFT: encoder_hidden_size).",
        min=1,
        max=16_384,
    )


@register(
    "prefix",
    title="Prefix tuning",
    source="arXiv:2101.00190",
    summary="Learns keys and values placed before those of every attention layer: a trained prompt "
    "in every layer, stored in a few megabytes.",
    formula="attention(q, [P_k; K], [P_v; V])",
    parameter_formula="n · 2 L d_kv, without projection",
    description="Attention looks up what earlier tokens left behind as keys and values. "
    "Prefix tuning "
    "leaves trained ones in every layer, as if a text had been read that no words could say. No "
    "weight changes; the price is a longer key-value cache and places in the context. Started "
    "from the keys and values of real tokens it learns far better than from random numbers.",
    diagram_labels={"attention": "P_k, P_v"},
    config=PrefixConfig,
    default_lr=1e-2,
    can_pack=NO_PACKING,
    can_checkpoint_activations=Unsupported(
        "the prefix is in the key-value cache, which a recomputed layer would find filled "
        "already. Set train.activation_checkpointing off."
    ),
    can_compile=Unsupported(
        "every layer writes to another cache slot, so torch.compile recompiles each layer and "
        "hits its limit of eight. Set train.compile off."
    ),
    can_use_bfloat16_adapters=NO_16_BITS,
    is_identity_at_start=NO_START,
)
class Prefix(PeftMethod):
    peft_class = "PrefixTuningConfig"

    def check(self, model: Any, config: PrefixConfig, context: Context) -> list[Problem]:
        problems = start_problems(config, context)
        if config.projection and config.init == "text":
            problems.append(
                Problem(
                    "method.init",
                    "is text, which cannot be traced back through the projection. Choose random, "
                    "or set projection to false.",
                )
            )
        return problems

    def peft_config_kwargs(self, config: PrefixConfig) -> dict[str, Any]:
        settings: dict[str, Any] = {"num_virtual_tokens": config.num_virtual_tokens}
        if config.projection:
            settings |= {"prefix_projection": True, "encoder_hidden_size": config.projection_width}
        return settings

    def apply(self, model: Any, config: PrefixConfig, context: Context) -> Any:
        import torch

        begin = None
        if not config.projection and config.init != "random" and not is_meta(model):
            begin = _keys_and_values(model, start_ids(model, config, context))
        model = super().apply(model, config, context)
        if config.projection or is_meta(model):
            return model
        prefix = model.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            if begin is None:
                prefix.mul_(DEVIATION)
            elif begin.shape == prefix.shape:
                prefix.copy_(begin)
            else:
                raise LabError(
                    f"This architecture keeps keys and values as {tuple(begin.shape)}, its prefix "
                    f"as {tuple(prefix.shape)}.",
                    "Set method.init to random.",
                )
        return model

    def script_before(self, config: PrefixConfig) -> list[str]:
        if config.projection or config.init == "random":
            return []
        return [
            *start_lines(config),
            "model.eval()",
            "with torch.no_grad():  # for each layer the base's keys, then its values",
            "    output = model(input_ids=ids[None].to(model.device), use_cache=True)",
            "start = torch.cat(",
            "    [",
            "        tensor[0].transpose(0, 1).flatten(1).float()",
            "        for layer in output.past_key_values.layers",
            "        for tensor in (layer.keys, layer.values)",
            "    ],",
            "    dim=1,",
            ")",
        ]

    def script_after(self, config: PrefixConfig) -> list[str]:
        if config.projection:
            return []
        prefix = 'model.prompt_encoder["default"].embedding.weight.data'
        return [
            f"{prefix}.mul_({DEVIATION})" if config.init == "random" else f"{prefix}.copy_(start)"
        ]

    def trainable_count(self, model: Any, config: PrefixConfig, context: Context) -> int:
        d_kv, layers = key_value_size(model.config), model.config.num_hidden_layers
        n, m, outputs = config.num_virtual_tokens, config.projection_width, 2 * layers * d_kv
        if not config.projection:
            return int(n * outputs)
        return int(n * d_kv + (d_kv * m + m) + (m * outputs + outputs))

    def virtual_tokens(self, config: PrefixConfig) -> tuple[int, int]:
        return (0, config.num_virtual_tokens)


def key_value_size(config: Any) -> int:
    """Numbers in the keys of one token in one layer: key-value heads x head size."""
    heads: int = config.num_attention_heads
    size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared: int = getattr(config, "num_key_value_heads", None) or heads
    return shared * size


def _keys_and_values(model: Any, ids: Any) -> Any:
    """(n, 2 L d_kv): what the base's layers leave in the cache for the tokens `ids`, in the order
    in which PEFT reads its prefix: for each layer the keys, then the values."""
    import torch

    from lab.models.weights import evaluating

    with evaluating(model), torch.no_grad():
        device = model.get_input_embeddings().weight.device
        cache = model(input_ids=ids.unsqueeze(0).to(device), use_cache=True).past_key_values
    parts = []
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):  # (1, heads, n, size)
            parts.append(tensor[0].transpose(0, 1).flatten(1).float())
    return torch.cat(parts, dim=1)
