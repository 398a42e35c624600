"""Full fine-tuning: every parameter trains.

theta <- theta - lr * dL/dtheta for all N parameters of the base model. AdamW keeps two moments
a parameter, so the training state is three to four times the weights.
Trainable = N, the number of parameters of the base (tied weights counted once).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.methods import Context, Method, No, register
from lab.methods.drawing import ALL


@dataclass(frozen=True, kw_only=True)
class FullConfig:
    """Nothing to choose: all parameters train."""


@register(
    "full",
    title="Full fine-tuning",
    source="arXiv:1801.06146",
    summary="Trains every parameter. The most capacity to learn new facts, the most memory, and "
    "the most forgetting on narrow data.",
    config=FullConfig,
    formula="θ ← θ − η ∇L(θ)",
    count="N: every parameter of the base, tied weights once",
    explain="Nothing is frozen: each step moves every weight a little against its gradient. "
    "That is the most capacity, so it can take in new facts, and the largest bill: gradients and "
    "two moments for each weight. On narrow data the same freedom lets the model forget what it "
    "could do before, so the learning rate is ten times lower than with adapters.",
    trains={
        "embeddings": ALL,
        "attention": ALL,
        "norm": ALL,
        "feed_forward": ALL,
        "head": ALL,
    },
    default_lr=2e-5,
    can_merge=No("there is nothing to merge: the result is a whole model."),
    can_quantise_base=No(
        "4-bit and 8-bit weights are integers with a shared scale and take no gradient. Choose "
        "qlora to train on such a base."
    ),
    saves_whole_model=True,
)
class Full(Method):
    def apply(self, model: Any, config: FullConfig, context: Context) -> Any:
        model.requires_grad_(True)
        return model

    def trainable_count(self, model: Any, config: FullConfig, context: Context) -> int:
        return sum(weight.numel() for weight in model.parameters())

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)

    def load(self, base: Any, folder: Path) -> Any:
        """`base` with the trained weights in place of its own, in the type of `base`."""
        from lab.models.weights import read_weights

        return read_weights(base, folder)
