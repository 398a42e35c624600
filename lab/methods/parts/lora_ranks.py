"""Ranks and alphas of LoRA by decoder layer: the same everywhere, a ramp, or a list."""

from __future__ import annotations

from typing import Any

from lab.errors import Problem
from lab.formatting import quantity
from lab.methods.parts.target_modules import LinearLayer


def ranks_and_alphas(layers: list[LinearLayer], config: Any) -> dict[str, tuple[int, float]]:
    """(rank, alpha) of each target, by its decoder layer."""
    numbers = sorted({layer.layer_index for layer in layers if layer.layer_index is not None})
    last = max(numbers[-1] if numbers else 0, 1)
    rank_alpha = {}
    for layer in layers:
        layer_index = layer.layer_index
        rank, alpha = config.rank, config.alpha
        if layer_index is not None:
            if config.layer_ranks:
                rank = config.layer_ranks[min(layer_index, len(config.layer_ranks) - 1)]
            elif config.last_rank is not None:
                rank = round(config.rank + (config.last_rank - config.rank) * layer_index / last)
            if config.layer_alphas:
                alpha = config.layer_alphas[min(layer_index, len(config.layer_alphas) - 1)]
            elif config.last_alpha is not None:
                alpha = config.alpha + (config.last_alpha - config.alpha) * layer_index / last
            else:
                alpha = config.alpha * rank / config.rank
        rank_alpha[layer.name] = (rank, alpha)
    return rank_alpha


def problems_by_layer(layers: list[LinearLayer], config: Any) -> list[Problem]:
    count = 1 + max(
        (layer.layer_index for layer in layers if layer.layer_index is not None), default=0
    )
    problems = []
    for option_name, ramp in (("layer_ranks", "last_rank"), ("layer_alphas", "last_alpha")):
        layer_values = getattr(config, option_name)
        if layer_values and len(layer_values) != count:
            problems.append(
                Problem(
                    f"method.{option_name}",
                    f"has {quantity(len(layer_values), 'value')}; the model has "
                    f"{quantity(count, 'layer')}.",
                )
            )
        if layer_values and getattr(config, ramp) is not None:
            problems.append(
                Problem(f"method.{ramp}", f"cannot be set beside {option_name}. Clear one.")
            )
    return problems


def too_high_ranks(layers: list[LinearLayer], config: Any) -> list[Problem]:
    by_layer = ranks_and_alphas(layers, config)
    for layer in layers:
        rank, most = by_layer[layer.name][0], min(layer.d_in, layer.d_out)
        if rank > most:
            return [
                Problem(
                    "method.rank",
                    f"is {rank}; {layer.name} has only {quantity(most, 'singular value')} to start "
                    f"{config.init_lora_weights} from. Lower it to {most}.",
                )
            ]
    return []
