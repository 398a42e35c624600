"""Full fine-tuning: every parameter trains.

theta <- theta - lr * dL/dtheta for all N parameters of the base model. AdamW keeps two moments
a parameter, so the training state is three to four times the weights.
Trainable = N, the number of parameters of the base (tied weights counted once).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.methods import Context, Method, register


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
    default_lr=2e-5,
    saves_whole_model=True,
)
class Full(Method):
    def apply(self, model: Any, config: FullConfig, context: Context) -> Any:
        model.requires_grad_(True)
        return model

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)

    def load(self, base: Any, folder: Path) -> Any:
        """`base` with the trained weights in place of its own, in the type of `base`."""
        from lab.models.weights import read_weights

        return read_weights(base, folder)
