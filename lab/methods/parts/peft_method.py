"""What all methods that PEFT implements share: how they are applied, saved, loaded and scripted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from lab.errors import Problem
from lab.library_imports import import_peft
from lab.methods import Context, Method
from lab.methods.parts import adapter_files, fitting_defaults
from lab.methods.parts.script_lines import linear_lines, names_lines
from lab.methods.parts.target_modules import (
    ALL_LINEAR,
    bypassed_names,
    target_entries,
    target_layers,
    target_problems,
)


class PeftMethod(Method):
    """A method of the PEFT library: `peft_class` is its config, `peft_config_kwargs` fills it."""

    peft_class: ClassVar[str]
    # fields of that config which no other method sets: without them its results are not read
    peft_fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        adapter_files.KNOWN.update(cls.peft_fields)

    def check(self, model: Any, config: Any, context: Context) -> list[Problem]:
        if not hasattr(config, "target_modules"):
            return []
        return target_problems(model, config.target_modules, self.can_train_conv1d)

    def peft_config_kwargs(self, config: Any) -> dict[str, Any]:
        """Arguments of PEFT's config that follow from the options alone."""
        raise NotImplementedError(f"{self.name} has no settings")

    def peft_config_kwargs_for(self, model: Any, config: Any, context: Context) -> dict[str, Any]:
        """As `peft_config_kwargs`, with what only the model or the tokenizer tells."""
        return self.peft_config_kwargs(config)

    def fit_defaults(self, model: Any, config: Any) -> tuple[dict[str, Any], list[str]]:
        changes, notes = fitting_defaults.fitting_targets(model, config)
        if self.peft_class == "LoraConfig":
            targets = changes.get("target_modules", config.target_modules)
            more, further = fitting_defaults.fitting_dropout(model, config, targets)
            changes, notes = changes | more, notes + further
        return changes, notes

    def apply(self, model: Any, config: Any, context: Context) -> Any:
        peft = import_peft()
        kind = getattr(peft, self.peft_class)
        values = self.peft_config_kwargs_for(model, config, context)
        targets = values.get("target_modules")
        if isinstance(targets, str) and (targets != ALL_LINEAR or bypassed_names(model)):
            # PEFT would match a pattern without a limit of time, here and at each loading
            values["target_modules"] = [
                layer.name for layer in target_layers(model, config.target_modules)
            ]
        settings = kind(**values, task_type="CAUSAL_LM")
        peft_model = peft.get_peft_model(
            model, settings, autocast_adapter_dtype=keeps_float32_adapters(context)
        )
        return cast_adapters(peft_model, context)

    def script(self, config: Any) -> list[str]:
        values, before = self.script_settings(config), self.script_before(config)
        targets = self.peft_config_kwargs(config).get("target_modules")
        if isinstance(targets, str) and targets != ALL_LINEAR:
            # PEFT would apply a pattern to modules that are not linear layers, too
            chosen = names_lines(target_entries(config.target_modules), "targets")
            before = [*linear_lines("targets"), f"targets = {chosen}", *before]
            values |= {"target_modules": "targets"}
        lines = [f"        {key}={value}," for key, value in values.items()]
        vectors = [f"VECTORS = {self.vectors!r}", ""] if self.vectors else []
        return [
            "import peft  # noqa: E402",
            "",
            *vectors,
            *before,
            "model = peft.get_peft_model(",
            "    model,",
            f"    peft.{self.peft_class}(",
            *lines,
            '        task_type="CAUSAL_LM",',
            "    ),",
            ")",
            *self.script_after(config),
            "model.print_trainable_parameters()",
        ]

    def script_settings(self, config: Any) -> dict[str, str]:
        """Arguments of PEFT's config as source text."""
        return {key: repr(value) for key, value in self.peft_config_kwargs(config).items()}

    def script_before(self, config: Any) -> list[str]:
        """Lines of the script before PEFT's model is made, such as names that its config takes."""
        return []

    def script_after(self, config: Any) -> list[str]:
        """Lines of the script behind that."""
        return []

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)

    def load(self, base: Any, folder: Path) -> Any:
        return adapter_files.read(base, folder, self.peft_class)

    def check_saved(self, base: Any, folder: Path) -> None:
        adapter_files.check(base, folder, self.peft_class)

    def merge(self, model: Any) -> Any:
        return model.merge_and_unload()


def keeps_float32_adapters(context: Context) -> bool:
    """PEFT raises a 16-bit adapter to float32 unless told not to."""
    return context.spec is None or bool(context.spec.train.adapter_precision == "float32")


def cast_adapters(model: Any, context: Context) -> Any:
    """`model` with its adapters in the base's type where they should be: on the meta device PEFT
    leaves them in float32."""
    if keeps_float32_adapters(context) or not is_meta(model):
        return model
    return cast_trainable(model, model.get_input_embeddings().weight.dtype)


def cast_trainable(model: Any, dtype: Any) -> Any:
    """`model` with the parameters that train in `dtype`."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(dtype)
    return model


def two_rates(
    model: Any, learning_rate: float, is_second: Callable[[str], bool], ratio: float
) -> list[dict[str, Any]]:
    """Optimizer groups: the parameters whose names are not `is_second`, then those whose names are,
    which learn `ratio` times as fast."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return [
        {"params": [weight for name, weight in named if is_second(name) is second], "lr": rate}
        for second, rate in ((False, learning_rate), (True, learning_rate * ratio))
    ]


def is_meta(model: Any) -> bool:
    """Whether the weights have shapes only, so that nothing can be read from them."""
    return bool(next(model.parameters()).device.type == "meta")
