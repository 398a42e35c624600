"""The fine-tuning methods: one self-registering file each, found by looking into this folder.

Adding a method is adding a file. What differs between methods is a field or a hook here,
never a comparison of names elsewhere. Nothing here imports torch at module level.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lab import schema
from lab.errors import LabError, Problem
from lab.schema import show


@dataclass(frozen=True)
class Context:
    """What a hook may look at besides the model."""

    spec: Any
    tokenizer: Any = None


class Method:
    """One way to fine-tune. Every hook but `apply`, `save` and `load` has a default."""

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]
    config: ClassVar[type]
    default_lr: ClassVar[float]
    can_merge: ClassVar[bool] = False
    can_pack: ClassVar[bool] = True
    can_checkpoint_activations: ClassVar[bool] = True
    starts_at_base: ClassVar[bool] = True
    saves_whole_model: ClassVar[bool] = False

    def check(self, model: Any, config: Any) -> list[Problem]:
        """What is wrong with `config` for this model; `model` may be on the meta device."""
        return []

    def load_kwargs(self, config: Any) -> dict[str, Any]:
        """Extra arguments of `from_pretrained`, before the model exists."""
        return {}

    def prepare(self, model: Any, config: Any, context: Context) -> None:
        """Change tokenizer or model before `apply`, such as new tokens."""

    def apply(self, model: Any, config: Any, context: Context) -> Any:
        """The model to train: exactly the declared parameters require gradients."""
        raise NotImplementedError(f"{self.name} has no apply")

    def param_groups(self, model: Any, config: Any, learning_rate: float) -> list[dict[str, Any]]:
        """Optimizer groups over the trainable parameters, each with its own rate."""
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        return [{"params": trainable, "lr": learning_rate}]

    def after_step(self, model: Any, config: Any, step: int) -> None:
        """Called after each optimizer step."""

    def on_evaluate(self, model: Any, config: Any, step: int, loss: float) -> None:
        """Called after each evaluation."""

    def state(self, model: Any) -> dict[str, Any]:
        """Tensors beyond the trainable parameters that an exact resume needs, by name."""
        return {}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Put `state` back."""

    def save(self, model: Any, folder: Path) -> None:
        """Write the result as safetensors and JSON into `folder`."""
        raise NotImplementedError(f"{self.name} has no save")

    def load(self, base: Any, folder: Path) -> Any:
        """The model to answer with: `base` changed by the saved result."""
        raise NotImplementedError(f"{self.name} has no load")

    def script(self, config: Any) -> list[str]:
        """Lines of a plain script that apply the method to `model`; none for full training."""
        return []

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "summary": self.summary,
            "default_lr": self.default_lr,
            "options": schema.describe(self.config),
            "supports": {
                "merge": self.can_merge,
                "packing": self.can_pack,
                "activation_checkpointing": self.can_checkpoint_activations,
                "starts_at_base": self.starts_at_base,
            },
        }


_methods: dict[str, Method] = {}


def register(name: str, **fields: Any) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: sets the fields on the method and makes it known. Names are unique."""

    def add(kind: type[Method]) -> type[Method]:
        if name in _methods:
            raise ValueError(f"two methods are named {name}")
        for key, value in {"name": name, **fields}.items():
            setattr(kind, key, value)
        _methods[name] = kind()
        return kind

    return add


def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def all_methods() -> list[Method]:
    """Every method, full fine-tuning first, then by name."""
    _import_all()
    return sorted(_methods.values(), key=lambda method: (method.name != "full", method.name))


def names() -> list[str]:
    return [method.name for method in all_methods()]


def get(name: str) -> Method:
    """The method of that name. Raises LabError with the choices for any other."""
    _import_all()
    if name not in _methods:
        raise LabError(f"Unknown method '{show(name)}'.", f"Choose one of: {', '.join(names())}.")
    return _methods[name]
