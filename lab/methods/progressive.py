"""Progressive unfreezing: begin as LoRA, open the base's layers from the top.

Every linear layer of the decoder has y = W0 x + (alpha / r) B A x from the start. When the
evaluation loss stalls, or every so many steps, the W0 and norms of the next layers from the top
become trainable too, and join the optimizer with fresh moments.
Trainable = sum over linear layers of r (d_in + d_out) at the start, plus the weights of each
opened layer.
Sources: Howard and Ruder 2018, arXiv:1801.06146, section 3.3 (gradual unfreezing); Hu et al.
2021, arXiv:2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import Problem
from lab.methods import Context, Unsupported, register
from lab.methods.parts.lora_with_base import (
    LoraAndBase,
    OpenedConfig,
    add_lora,
    linear_in_layers,
    lora_count,
    unfreeze_layers,
)
from lab.models.decoder_structure import decoder_layers
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig(OpenedConfig):
    trigger: str = option(
        "stall",
        "Unfreeze on",
        "stall (evaluation loss has stopped improving) or steps (a fixed interval).",
        choices=("stall", "steps"),
    )
    patience: int = option(
        1, "Patience", "Evaluations without improvement that count as a stall.", min=1, max=1000
    )
    min_delta: float = option(
        0.005,
        "Minimum improvement",
        "Decrease of the evaluation loss that counts as an improvement.",
        min=0.0,
        max=10.0,
        formerly="least_gain",
    )
    every: int = option(
        50,
        "Unfreeze every (steps)",
        "Steps between unfreezings, for trigger steps.",
        min=1,
        max=10**6,
    )
    layers_at_once: int = option(
        1, "Layers per unfreezing", "Layers opened each time.", min=1, max=1000
    )
    most_layers: int | None = option(
        None, "Max unfrozen layers", "Not set: all layers in the end.", min=1, max=1000
    )


@dataclass
class Progress:
    """How far the unfreezing of a model has come."""

    opened: int = 0
    best: float = float("inf")
    waited: int = 0


@register(
    "progressive",
    title="Progressive unfreezing",
    source="arXiv:1801.06146",
    summary="Starts as LoRA and opens the base from the top, layer by layer, when the evaluation "
    "loss stalls or on a schedule.",
    formula="y = W₀x + (α/r) B A x; W₀ of the top layers joins, one opening after the other",
    parameter_formula="Σ over linear layers of r (d_in + d_out), plus each opened layer's weights",
    description="Training everything at once risks forgetting; training only low-rank matrices "
    "may not learn enough. So begin with the matrices, and when they have given what "
    "they can, let the top layer move as well, then the one below. Each opened layer "
    "adds its gradients and moments to the memory: the estimate counts all that may "
    "open.",
    diagram_labels={"attention": "B·A, then all", "feed_forward": "B·A, then all"},
    config=ProgressiveConfig,
    default_lr=2e-4,
    can_script=Unsupported("opening layers on the way is the lab's own."),
    can_quantise_base=Unsupported("it trains base weights, which must be unquantised."),
    adds_parameters=True,
)
class Progressive(LoraAndBase):
    def check(self, model: Any, config: ProgressiveConfig, context: Context) -> list[Problem]:
        data = context.spec.data
        if config.trigger == "steps" or data.eval_fraction > 0 or data.eval_dataset is not None:
            return []
        return [
            Problem(
                "method.trigger",
                "is stall, and no examples are held out for evaluation. Raise "
                "data.eval_fraction, or set steps.",
            )
        ]

    def trainable_count(self, model: Any, config: ProgressiveConfig, context: Context) -> int:
        return lora_count(model, linear_in_layers(model), config.rank)

    def apply(self, model: Any, config: ProgressiveConfig, context: Context) -> Any:
        model = add_lora(model, linear_in_layers(model), config, context)
        model.progress = Progress()
        return model

    def unfreeze_all(self, model: Any, config: ProgressiveConfig) -> None:
        _open(model, config.most_layers or len(decoder_layers(model)[1]))

    def on_optimizer_step(self, model: Any, config: ProgressiveConfig, step: int) -> None:
        if config.trigger == "steps":
            _open_next(model, config, step // config.every * config.layers_at_once)

    def on_evaluate(self, model: Any, config: ProgressiveConfig, step: int, loss: float) -> None:
        progress: Progress = model.progress
        if config.trigger != "stall":
            return
        if loss < progress.best - config.min_delta:
            progress.best, progress.waited = loss, 0
            return
        progress.waited += 1
        if progress.waited >= config.patience:
            progress.waited = 0
            _open_next(model, config, progress.opened + config.layers_at_once)

    def state(self, model: Any) -> dict[str, Any]:
        import torch

        progress: Progress = model.progress
        return {
            "opened": torch.tensor(progress.opened),
            "best": torch.tensor(progress.best, dtype=torch.float64),
            "waited": torch.tensor(progress.waited),
        }

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        model.progress = Progress(
            best=float(state["best"]),
            waited=int(state["waited"]),
        )
        _open(model, int(state["opened"]))


def _open_next(model: Any, config: ProgressiveConfig, num_layers: int) -> None:
    most = config.most_layers or num_layers
    if min(num_layers, most) > model.progress.opened:
        _open(model, min(num_layers, most))


def _open(model: Any, num_layers: int) -> None:
    """Let the top `number` layers train."""
    count = len(decoder_layers(model)[1])
    num_layers = min(num_layers, count)
    unfreeze_layers(model, range(count - num_layers, count))
    model.progress.opened = num_layers
