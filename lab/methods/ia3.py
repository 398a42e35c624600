"""(IA)^3: stretch or shrink what attention and feed-forward pass on, one number a channel.

k = l_k * (W_k x), v = l_v * (W_v x), and W_down (l_ff * act(...)) in the feed-forward block; every
l is a vector of ones at the start, so step 0 equals the base. Where one matrix makes queries, keys
and values together, its whole output is scaled.
Trainable = sum of d_out over keys and values + sum of d_in over the down projections.
Source: Liu et al. 2022, arXiv:2205.05638, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import Problem
from lab.methods import Context, register
from lab.methods.parts import patterns
from lab.methods.parts.peft_method import PeftMethod
from lab.methods.parts.script_lines import linear_lines, names_lines
from lab.methods.parts.target_modules import LinearLayer, linear_layers
from lab.schema import option

# last parts of names, as attention layers call their key and value projections
KEYS_AND_VALUES = (
    "k_proj", "v_proj", "key", "value", "k", "v", "wk", "wv", "key_proj", "value_proj",
    "query_key_value", "qkv_proj", "qkv", "c_attn", "Wqkv", "in_proj_qkv", "kv_proj",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Ia3Config:
    attention: list[str] | None = option(
        None,
        "Attention modules",
        "Layers whose output is scaled. Not set: the key and value projections.",
        names=True,
    )
    feed_forward: list[str] | None = option(
        None,
        "Feed-forward modules",
        "Layers whose input is scaled. Not set: the down projections.",
        names=True,
    )


@register(
    "ia3",
    title="(IA)³",
    source="arXiv:2205.05638",
    summary="Trains one factor a channel on keys, values and the feed-forward block: a few "
    "thousand numbers for a small model.",
    formula="k = l_k ⊙ W_k x,  v = l_v ⊙ W_v x,  W_down (l_ff ⊙ act(…))",
    parameter_formula="Σ d_out of keys and values + Σ d_in of the down projections",
    description="Nothing is added to the weights. Instead, each channel of the keys, the "
    "values and "
    "the feed-forward block gets one factor, 1 at the start, that training turns up or down. It "
    "is the smallest of the methods that reach into every layer, wants a high learning rate, and "
    "its factors can be multiplied into the weights at the end.",
    diagram_labels={"attention": "× l_k, l_v", "feed_forward": "× l_ff"},
    config=Ia3Config,
    default_lr=1e-2,
    trains_only_vectors=True,
    can_merge=True,
)
class Ia3(PeftMethod):
    peft_class = "IA3Config"
    vectors = ("ia3_l.",)

    def check(self, model: Any, config: Ia3Config, context: Context) -> list[Problem]:
        names = [layer.name for layer in linear_layers(model)]
        choices = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
        nothing = f"names no linear layer of this model. Choose from: {choices}."
        problems = [
            problem
            for option_name in ("attention", "feed_forward")
            for problem in patterns.problems(
                f"method.{option_name}", getattr(config, option_name) or [], names, nothing
            )
        ]
        if problems:
            return problems
        outputs, inputs = scaled(model, config)
        for option_name, targeted in (("attention", outputs), ("feed_forward", inputs)):
            if not targeted and getattr(config, option_name) is None:
                problems.append(
                    Problem(
                        f"method.{option_name}",
                        "cannot be found by name and shape in this model; name the layers. Choose "
                        f"from: {choices}.",
                    )
                )
        return problems

    def peft_config_kwargs(self, config: Ia3Config) -> dict[str, Any]:
        return {
            "target_modules": [*(config.attention or []), *(config.feed_forward or [])] or None,
            "feedforward_modules": config.feed_forward,
        }

    def peft_config_kwargs_for(
        self, model: Any, config: Ia3Config, context: Context
    ) -> dict[str, Any]:
        outputs, inputs = scaled(model, config)
        names = [layer.name for layer in (*outputs, *inputs)]
        return {
            "target_modules": names,
            "feedforward_modules": [layer.name for layer in inputs],
            "fan_in_fan_out": any(layer.is_conv1d for layer in (*outputs, *inputs)),
        }

    def script_before(self, config: Ia3Config) -> list[str]:
        lines = [
            *linear_lines("linear"),
            'linear = [name for name in linear if re.search(r"\\.\\d+\\.", f".{name}.")]',
            f"read = {names_lines(config.feed_forward or [], 'linear')}",
            f"written = {names_lines(config.attention or KEYS_AND_VALUES, 'linear')}",
            "written = [name for name in written if name not in read]",
        ]
        if config.feed_forward is None:
            lines += [
                "# of each decoder layer, the last linear map that is not attention's",
                'parents = {name.rpartition(".")[0] for name in written}',
                "last = {}",
                "for name in linear:",
                '    if name.rpartition(".")[0] not in parents:',
                '        last[re.search(r"\\.(\\d+)\\.", f".{name}.")[1]] = name',
                "read = [name for name in last.values() if name not in written]",
            ]
        return [*lines, "is_conv1d = any(isinstance(layers[n], Conv1D) for n in [*written, *read])"]

    def script_settings(self, config: Ia3Config) -> dict[str, str]:
        return {
            "target_modules": "[*written, *read]",
            "feedforward_modules": "read",
            "fan_in_fan_out": "is_conv1d",
        }

    def trainable_count(self, model: Any, config: Ia3Config, context: Context) -> int:
        outputs, inputs = scaled(model, config)
        return sum(layer.d_out for layer in outputs) + sum(layer.d_in for layer in inputs)


def scaled(model: Any, config: Ia3Config) -> tuple[list[LinearLayer], list[LinearLayer]]:
    """(layers whose output is scaled, layers whose input is)."""
    layers = [layer for layer in linear_layers(model) if layer.layer_index is not None]
    names = [layer.name for layer in layers]
    read = patterns.all_named(config.feed_forward or [], names)
    written = patterns.all_named(config.attention or KEYS_AND_VALUES, names) - read
    inputs = [layer for layer in layers if layer.name in read]
    outputs = [layer for layer in layers if layer.name in written]
    if config.feed_forward is None:
        inputs = _down_projections(layers, outputs)
    return outputs, inputs


def _down_projections(layers: list[LinearLayer], outputs: list[LinearLayer]) -> list[LinearLayer]:
    """Of each decoder layer, the last linear map that is not attention's: it closes the
    feed-forward block. Attention's are those under the same parent as its keys and values."""
    attention = {layer.name.rpartition(".")[0] for layer in outputs}
    last: dict[int, LinearLayer] = {}
    for layer in layers:
        if layer.name.rpartition(".")[0] not in attention and layer.layer_index is not None:
            last[layer.layer_index] = layer
    return [layer for layer in last.values() if layer not in outputs]
