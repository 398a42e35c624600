"""The fine-tuning methods: one self-registering file each, found by looking into this folder.

Adding a method is adding a file. What differs between methods is a field or a hook here,
never a comparison of names elsewhere. Nothing here imports torch at module level.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lab import schema
from lab.errors import LabError, Problem
from lab.methods.parts import compatibility, diagram
from lab.methods.parts.compatibility import Unsupported
from lab.schema import quote

__all__ = [
    "Context",
    "Method",
    "Unsupported",
    "all_methods",
    "get",
    "names",
    "register",
    "standard_methods",
]


@dataclass(frozen=True)
class Context:
    """What a hook may look at besides the model."""

    spec: Any
    tokenizer: Any = None


class Method:
    """One way to fine-tune. Every hook but `apply`, `trainable_count`, `save`, `load` and
    `check_saved` has a default. What a method cannot do is `Unsupported("why")`; see
    `lab.methods.parts.compatibility`."""

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]
    formula: ClassVar[str] = ""  # what is computed, in one line
    parameter_formula: ClassVar[str] = ""  # the trainable parameters in closed form, in one line
    description: ClassVar[str] = ""  # a short paragraph for learners
    # What the figure marks; see lab.methods.parts.diagram.
    diagram_labels: ClassVar[Mapping[str, str]] = {}
    config: ClassVar[type]
    default_lr: ClassVar[float]

    can_pack: ClassVar[bool | Unsupported] = True
    can_checkpoint_activations: ClassVar[bool | Unsupported] = True
    can_fuse_loss: ClassVar[bool | Unsupported] = True
    can_compile: ClassVar[bool | Unsupported] = True
    can_mix_precision: ClassVar[bool | Unsupported] = True
    can_use_bfloat16: ClassVar[bool | Unsupported] = True
    can_use_bfloat16_adapters: ClassVar[bool | Unsupported] = True
    can_limit_time: ClassVar[bool | Unsupported] = True
    can_train_conv1d: ClassVar[bool | Unsupported] = True
    can_quantise_base: ClassVar[bool | Unsupported] = Unsupported(
        "it needs unquantised weights; use qlora or lora8bit for a 4-bit or 8-bit base model."
    )
    can_merge: ClassVar[bool | Unsupported] = Unsupported(
        "its trained parameters cannot be folded into the base weights."
    )
    can_script: ClassVar[bool | Unsupported] = True
    is_identity_at_start: ClassVar[bool | Unsupported] = True
    can_update_in_backward: ClassVar[bool | Unsupported] = True
    saves_whole_model: ClassVar[bool] = False
    trains_base_weights: ClassVar[bool] = False  # weights of the base train, in the base's own type
    # on_optimizer_step or on_evaluate may make more parameters trainable
    adds_parameters: ClassVar[bool] = False
    # Tensors like each trainable one that the method keeps from step to step, beside the optimizer.
    score_copies: ClassVar[int] = 0
    # Parts of names: trained vectors whose tensors have two dimensions. Weight decay leaves them,
    # like biases and norms, alone.
    vectors: ClassVar[tuple[str, ...]] = ()
    trains_only_vectors: ClassVar[bool] = False  # so that weight decay has no effect
    # One of the few that articles and their rules of thumb speak of; not inherited.
    is_standard: ClassVar[bool] = False
    # The method to offer where this one does not fit into memory; not inherited.
    lighter_method: ClassVar[str] = ""

    def check(self, model: Any, config: Any, context: Context) -> list[Problem]:
        """What is wrong with `config` for this model and spec. `model` may be on the meta device;
        the tokenizer may be missing, and what needs it is left out then."""
        return []

    def fit_defaults(self, model: Any, config: Any) -> tuple[dict[str, Any], list[str]]:
        """(options whose default this model does not take, with values that it does; why, for
        people). A value that is no default is not changed."""
        return {}, []

    def trainable_count(self, model: Any, config: Any, context: Context) -> int:
        """The closed form: trainable parameters from the shapes of the base alone.

        `model` is the base after `prepare` and before `apply`; it may be on the meta device.
        """
        raise NotImplementedError(f"{self.name} has no trainable_count")

    def needs_separate_base(self, config: Any) -> bool:
        """Whether the base's own tensors change or are stored in another form, so that a result
        cannot stand beside others on one base in memory."""
        return self.saves_whole_model or bool(self.load_kwargs(config))

    def virtual_tokens(self, config: Any) -> tuple[int, int]:
        """(positions that pass through all layers, positions that are only attended to) which
        the method puts before every row."""
        return (0, 0)

    def load_kwargs(self, config: Any) -> dict[str, Any]:
        """Extra arguments of `from_pretrained`, before the model exists."""
        return {}

    def extend_tokenizer(self, tokenizer: Any, config: Any) -> None:
        """Add tokens, before any text is tokenised. Doing it twice changes nothing."""

    def prepare(self, model: Any, config: Any, context: Context) -> None:
        """Change the base before it is measured and `apply` is called, such as room for new
        tokens."""

    def apply(self, model: Any, config: Any, context: Context) -> Any:
        """The model to train: exactly the declared parameters require gradients."""
        raise NotImplementedError(f"{self.name} has no apply")

    def set_total_steps(self, model: Any, config: Any, steps: int | None) -> None:
        """Called once a run is planned, before a checkpoint is read and the first step is made.

        `steps` is the whole run's number of optimizer steps, None if a clock ends it.
        """

    def unfreeze_all(self, model: Any, config: Any) -> None:
        """Make trainable what will be at the end, for a method with `adds_parameters`: memory is
        counted for this."""

    def param_groups(self, model: Any, config: Any, learning_rate: float) -> list[dict[str, Any]]:
        """Optimizer groups over the trainable parameters, each with its own rate."""
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        return [{"params": trainable, "lr": learning_rate}]

    def penalty(self, model: Any, config: Any) -> Any:
        """A scalar tensor added to the mean loss of each step, such as a regulariser; or None.
        The recorded loss leaves it out."""
        return None

    def on_optimizer_step(self, model: Any, config: Any, step: int) -> None:
        """Called after optimizer step `step` (from 1 on), while the gradients still exist."""

    def on_evaluate(self, model: Any, config: Any, step: int, loss: float) -> None:
        """Called after each evaluation."""

    def scores(self, model: Any) -> list[Any]:
        """The tensors that `score_copies` counts, once a step was made."""
        return []

    def state(self, model: Any) -> dict[str, Any]:
        """Tensors beyond the trainable parameters that an exact resume needs, by name."""
        return {}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Put `state` back; called before the trainable parameters are read."""

    def save(self, model: Any, folder: Path) -> None:
        """Write the result as safetensors and JSON into `folder`."""
        raise NotImplementedError(f"{self.name} has no save")

    def load(self, base: Any, folder: Path) -> Any:
        """The model to answer with: `base` changed by the saved result."""
        raise NotImplementedError(f"{self.name} has no load")

    def load_saved(self, base: Any, folder: Path) -> Any:
        """`load`, with a LabError for any error that untrusted files cause in a library."""
        from lab.models.weights import first_line, is_out_of_memory

        try:
            return self.load(base, folder)
        except LabError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise LabError(
                f"The result in {folder} cannot be loaded: {first_line(error)}.",
                "It is damaged, or belongs to another base model.",
            ) from None

    def check_saved(self, base: Any, folder: Path) -> None:
        """Raise LabError unless `folder` holds a whole result of this method that fits `base`, an
        empty model on the meta device (which it may change). Reads JSON and headers only."""
        raise NotImplementedError(f"{self.name} has no check_saved")

    def merge(self, model: Any) -> Any:
        """A loaded result as one plain model, where `can_merge`. Changes the base's tensors in
        place: not for a tree that shares them."""
        raise NotImplementedError(f"{self.name} has no merge")

    def script(self, config: Any) -> list[str]:
        """Lines of a plain script that apply the method to `model`, and what else it does; see
        `lab/export/plain_training.py`."""
        return []

    def script_load(self, config: Any) -> list[str]:
        """Arguments of `from_pretrained` in a plain script, as source text."""
        return []

    @property
    def figure(self) -> str:
        """An SVG of what is trained."""
        return diagram.figure(self.diagram_labels)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "summary": self.summary,
            "formula": self.formula,
            "count": self.parameter_formula,
            "explain": self.description,
            "default_lr": self.default_lr,
            "options": [field.to_json() for field in schema.describe(self.config)],
            "supports": {
                feature.key: bool(getattr(self, feature.method_attribute))
                for feature in compatibility.FEATURES
            },
            "reasons": {
                feature.key: compatibility.unsupported_reason(
                    getattr(self, feature.method_attribute)
                )
                for feature in compatibility.FEATURES
                if not getattr(self, feature.method_attribute)
            },
        }


DEFAULT = "lora"  # of a new spec
NOT_INHERITED: dict[str, Any] = {"is_standard": False, "lighter_method": ""}

_methods: dict[str, Method] = {}


def register(name: str, **fields: Any) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: sets the fields on the method and makes it known. Names are unique."""

    def add(kind: type[Method]) -> type[Method]:
        if name in _methods:
            raise ValueError(f"two methods are named {name}")
        for key, value in {"name": name, **NOT_INHERITED, **fields}.items():
            setattr(kind, key, value)
        _methods[name] = kind()
        return kind

    return add


@functools.cache
def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg:
            continue  # parts, of which methods are made
        importlib.import_module(f"{__name__}.{module.name}")


def all_methods() -> list[Method]:
    """Every method, full fine-tuning first, then by name."""
    _import_all()
    return sorted(_methods.values(), key=lambda method: (method.name != "full", method.name))


def standard_methods() -> list[Method]:
    """The methods that rules of thumb speak of, in the order of `all_methods`."""
    return [method for method in all_methods() if method.is_standard]


def plainest() -> Method:
    """Full fine-tuning: the model as it is."""
    return all_methods()[0]


def names() -> list[str]:
    return [method.name for method in all_methods()]


def get(name: str) -> Method:
    """The method of that name. Raises LabError with the choices for any other."""
    _import_all()
    if name not in _methods:
        raise LabError(f"Unknown method '{quote(name)}'.", f"Choose one of: {', '.join(names())}.")
    return _methods[name]
