"""LoRA on some layers, and weights of the base that train with it: what the hybrids share.

The result is PEFT's adapter beside `base_weights.safetensors`, the changed weights of the base
under their own names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.methods import Context, Method
from lab.methods.parts import adapter_files
from lab.methods.parts.peft_method import as_base, wants_float32
from lab.models import headers
from lab.models.decoder_structure import decoder_layers
from lab.schema import option, quote

BASE_WEIGHTS = "base_weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    rank: int = option(16, "LoRA rank", "Rank r of the LoRA updates.", min=1, max=1024)
    alpha: float = option(
        32.0, "LoRA alpha", "The update is scaled by alpha / rank.", above=0.0, max=65_536
    )
    dropout: float = option(
        0.05, "LoRA dropout", "Dropout probability on the adapter input.", min=0.0, max=0.95
    )


@dataclass(frozen=True, kw_only=True)
class OpenedConfig(HybridConfig):
    base_rate: float = option(
        0.1,
        "Base learning rate ratio",
        "Learning rate of unfrozen base weights divided by that of the adapter; about 0.1.",
        above=0.0,
        max=10.0,
    )


class LoraAndBase(Method):
    """LoRA, and opened weights of the base at a rate of their own."""

    trains_base_weights = True

    def needs_separate_base(self, config: Any) -> bool:
        return True  # the base's own tensors change

    def param_groups(self, model: Any, config: Any, learning_rate: float) -> list[dict[str, Any]]:
        trainable = [
            (name, weight) for name, weight in model.named_parameters() if weight.requires_grad
        ]
        return [
            {
                "params": [weight for name, weight in trainable if is_lora(name)],
                "lr": learning_rate,
            },
            {
                "params": [weight for name, weight in trainable if not is_lora(name)],
                "lr": learning_rate * config.base_rate,
            },
        ]

    def save(self, model: Any, folder: Path) -> None:
        from safetensors.torch import save_file

        # PEFT would ask the hub whether the vocabulary has grown
        model.save_pretrained(folder, save_embedding_layers=False)
        opened = {
            base_name(name): weight.detach().contiguous()
            for name, weight in model.named_parameters()
            if weight.requires_grad and not is_lora(name)
        }
        if opened:
            save_file(opened, folder / BASE_WEIGHTS)

    def load(self, base: Any, folder: Path) -> Any:
        """`base`, whose own weights are overwritten, with the adapter on it."""
        import torch
        from safetensors.torch import load_file

        path = folder / BASE_WEIGHTS
        tensors = load_file(path) if headers.read_if_there(path) else {}
        self.make_room(base, tensors)
        base_weights = dict(base.named_parameters())
        for name, tensor in tensors.items():
            if name not in base_weights or base_weights[name].shape != tensor.shape:
                raise LabError(
                    f"{BASE_WEIGHTS} holds '{name}' {tuple(tensor.shape)}, which this base model "
                    "does not have.",
                    "The result was trained from another model.",
                )
            with torch.no_grad():
                base_weights[name].copy_(tensor)
        return adapter_files.read(base, folder, "LoraConfig")

    def check_saved(self, base: Any, folder: Path) -> None:
        opened = headers.read_if_there(folder / BASE_WEIGHTS)
        base_names = {name for name, _ in base.named_parameters()}
        unknown = sorted(set(opened) - base_names)
        if unknown:
            raise LabError(
                f"{BASE_WEIGHTS} holds '{quote(unknown[0])}', which this base model does not have.",
                "The result was trained from another model.",
            )
        adapter_files.check(base, folder, "LoraConfig")

    def make_room(self, base: Any, tensors: dict[str, Any]) -> None:
        """Change the shapes of `base` to those of the saved weights, where the method does."""


def add_lora(model: Any, names: list[str], config: HybridConfig, context: Context) -> Any:
    """LoRA on exactly the linear layers `names`; everything else is frozen."""
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    peft_model = peft.get_peft_model(model, settings, autocast_adapter_dtype=wants_float32(context))
    return as_base(peft_model, context)


def linear_in_layers(model: Any, places: Iterable[int] | None = None) -> list[str]:
    """Full names of the linear layers inside the decoder layers `places` (None: all)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    prefix, layers = decoder_layers(model)
    indices = range(len(layers)) if places is None else places
    return [
        f"{prefix}.{index}.{name}"
        for index in indices
        for name, module in layers[index].named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    ]


def lora_count(model: Any, names: list[str], rank: int) -> int:
    """Sum over `names` of r (d_in + d_out)."""
    return rank * sum(sum(model.get_submodule(name).weight.shape) for name in names)


def unfreeze_layers(model: Any, places: Iterable[int]) -> None:
    """Make the base's own weights in the decoder layers `places` trainable."""
    layers = decoder_layers(model)[1]
    for index in places:
        for name, weight in layers[index].named_parameters():
            if not is_lora(name):
                weight.requires_grad_(True)


def is_lora(name: str) -> bool:
    return ".lora_" in name


def base_name(name: str) -> str:
    """The base's own name of a parameter below PEFT's wrapping."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
