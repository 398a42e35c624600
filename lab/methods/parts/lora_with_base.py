"""LoRA on some layers, and weights of the base that train with it: what the hybrids share.

The result is PEFT's adapter, with the changed modules of the base in it as `modules_to_save`.
Where a module has both an update and changed weights, which PEFT cannot say, the adapter has names
of the lab's own, so that nobody loads the half, beside `base_weights.safetensors`: the changed
weights of the base under their own names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.atomic_files import read_object
from lab.errors import LabError
from lab.library_imports import import_peft
from lab.methods import Context, Method
from lab.methods.parts import adapter_files, fitting_defaults
from lab.methods.parts.peft_method import cast_adapters, keeps_float32_adapters, two_rates
from lab.methods.parts.target_modules import bypassed_names, is_tied
from lab.models import headers
from lab.models.decoder_structure import decoder_layers
from lab.schema import option, quote

BASE_WEIGHTS = "base_weights.safetensors"
LORA = ".lora_"  # in the names of an update's own parameters


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
    base_lr_ratio: float = option(
        0.1,
        "Base learning rate ratio",
        "Learning rate of unfrozen base weights divided by that of the adapter; about 0.1.",
        above=0.0,
        max=10.0,
        formerly="base_rate",
    )


class LoraAndBase(Method):
    """LoRA, and opened weights of the base at a rate of their own."""

    trains_base_weights = True

    def fit_defaults(self, model: Any, config: Any) -> tuple[dict[str, Any], list[str]]:
        return fitting_defaults.fitting_dropout(model, config, linear_in_layers(model))

    def needs_separate_base(self, config: Any) -> bool:
        return True  # the base's own tensors change

    def param_groups(self, model: Any, config: Any, learning_rate: float) -> list[dict[str, Any]]:
        ratio = config.base_lr_ratio
        return two_rates(model, learning_rate, lambda name: not is_lora(name), ratio)

    def save(self, model: Any, folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        # PEFT would ask the hub whether the vocabulary has grown
        model.save_pretrained(folder, save_embedding_layers=False)
        opened = {
            name: weight.detach().contiguous()
            for name, weight in model.named_parameters()
            if weight.requires_grad and not is_lora(name)
        }
        if any(".base_layer." in name for name in opened):
            adapter_files.keep_from_peft(folder)
            plain = {base_name(name): weight for name, weight in opened.items()}
            save_file(plain, folder / BASE_WEIGHTS)
        elif opened:
            # PEFT reads a tied head under its own name, too
            tied = {name: model.get_parameter(name) for name in _other_names(model, opened)}
            opened |= {name: weight.detach().clone() for name, weight in tied.items()}
            weights = folder / adapter_files.WEIGHTS
            save_file(load_file(weights) | opened, weights, metadata={"format": "pt"})
            config = folder / adapter_files.CONFIG
            settings = json.loads(config.read_text(encoding="utf-8"))
            settings["modules_to_save"] = _owners(map(base_name, opened))
            settings["ensure_weight_tying"] = is_tied(model)
            config.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")

    def load(self, base: Any, folder: Path) -> Any:
        """`base`, whose own weights are overwritten, with the adapter on it."""
        import torch
        from safetensors.torch import load_file

        file, stored = _stored(folder)
        tensors = (
            {base_name(key): tensor for key, tensor in load_file(file).items()} if file else {}
        )
        tensors = {name: tensor for name, tensor in tensors.items() if name in stored}
        self.resize_base(base, tensors)
        base_weights = dict(base.named_parameters(remove_duplicate=False))
        for name, tensor in tensors.items():
            if name not in base_weights or base_weights[name].shape != tensor.shape:
                raise LabError(
                    f"{file.name if file else ''} holds '{name}' {tuple(tensor.shape)}, which this "
                    "base model does not have.",
                    "The result was trained from another model.",
                )
            with torch.no_grad():
                base_weights[name].copy_(tensor)
        return adapter_files.read(base, folder, "LoraConfig", only=LORA)

    def check_saved(self, base: Any, folder: Path) -> None:
        file, opened = _stored(folder)
        base_names = {name for name, _ in base.named_parameters(remove_duplicate=False)}
        unknown = sorted(set(opened) - base_names)
        if unknown and file is not None:
            raise LabError(
                f"{file.name} holds '{quote(unknown[0])}', which this base model does not have.",
                "The result was trained from another model.",
            )
        adapter_files.check(base, folder, "LoraConfig", only=LORA)

    def resize_base(self, base: Any, tensors: dict[str, Any]) -> None:
        """Change the shapes of `base` to those of the saved weights, where the method does."""


def add_lora(model: Any, names: list[str], config: HybridConfig, context: Context) -> Any:
    """LoRA on exactly the linear layers `names`; everything else is frozen."""
    peft = import_peft()
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    peft_model = peft.get_peft_model(
        model, settings, autocast_adapter_dtype=keeps_float32_adapters(context)
    )
    return cast_adapters(peft_model, context)


def linear_in_layers(model: Any, chosen: Iterable[int] | None = None) -> list[str]:
    """Full names of the linear layers inside the decoder layers `places` (None: all)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    prefix, layers = decoder_layers(model)
    bypassed = bypassed_names(model)
    indices = range(len(layers)) if chosen is None else chosen
    return [
        f"{prefix}.{index}.{name}"
        for index in indices
        for name, module in layers[index].named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and name.rsplit(".", 1)[-1] not in bypassed
    ]


def lora_count(model: Any, names: list[str], rank: int) -> int:
    """Sum over `names` of r (d_in + d_out)."""
    return rank * sum(sum(model.get_submodule(name).weight.shape) for name in names)


def unfreeze_layers(model: Any, indices: Iterable[int]) -> None:
    """Make the base's own weights in the decoder layers `places` trainable."""
    layers = decoder_layers(model)[1]
    for index in indices:
        for name, weight in layers[index].named_parameters():
            if not is_lora(name):
                weight.requires_grad_(True)


def is_lora(name: str) -> bool:
    return LORA in name


def _stored(folder: Path) -> tuple[Path | None, dict[str, headers.Stored]]:
    """(the file, its changed weights of the base by their own names); none where only the adapter
    has been trained."""
    file = folder / BASE_WEIGHTS
    if tensors := headers.read_if_there(file):
        return file, tensors
    config, file = adapter_files.files_of(folder)
    if config.name == adapter_files.OWN_CONFIG:
        raise LabError(f"{folder} has no {BASE_WEIGHTS}.", "The result is incomplete.")
    stored = adapter_files.tensors_of(folder)
    opened = {base_name(key): stored[key] for key in stored if not is_lora(key)}
    for owner in (read_object(config) or {}).get("modules_to_save") or []:
        if not any(name.startswith(f"{owner}.") for name in opened):
            raise LabError(
                f"{file.name} in {folder} lacks '{quote(owner)}'.", "The result is incomplete."
            )
    return (file, opened) if opened else (None, {})


def _other_names(model: Any, names: Collection[str]) -> list[str]:
    """Further names of the parameters `names`, which are tied."""
    everything = dict(model.named_parameters(remove_duplicate=False))
    ids = {id(everything[name]) for name in names}
    return [n for n, w in everything.items() if id(w) in ids and n not in names]


def _owners(names: Iterable[str]) -> list[str]:
    """The modules that own the parameters `names`, without those inside another one."""
    owners = sorted({name.rpartition(".")[0] for name in names})
    return [
        owner
        for owner in owners
        if not any(owner.startswith(f"{other}.") for other in owners if other != owner)
    ]


def base_name(name: str) -> str:
    """The base's own name of a parameter below PEFT's wrapping."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
