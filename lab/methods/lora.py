"""LoRA: train a rank-r update beside each frozen weight.

y = W0 x + s B A x, with W0 (d_out, d_in) frozen, A (r, d_in) random, B (d_out, r) zero at the
start, so step 0 equals the base; s = alpha / r, or alpha / sqrt(r) with rank-stabilised scaling
(arXiv:2312.03732). Trainable = sum over targets of r (d_in + d_out).

DoRA (arXiv:2402.09353): y = m (W0 + s B A) x / ||W0 + s B A||, with the norm taken a row and m
(d_out,) trained from ||W0||: d_out more a target.
LoRA+ (arXiv:2402.12354): B learns `lr_ratio` times as fast as A.
PiSSA (arXiv:2404.02948) starts with the r largest singular triplets of W0 in B A, OLoRA
(arXiv:2406.01775) with the first r columns of its QR; W0 keeps the rest, so step 0 equals the
base up to rounding. The result is saved as a plain LoRA of rank 2r on the untouched base:
s (B A - B0 A0) = s [B, -B0] [A; A0].
Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError, Problem
from lab.methods import Context, register
from lab.methods.parts import lora_script, patterns
from lab.methods.parts.lora_ranks import problems_by_layer, ranks_and_alphas, too_high_ranks
from lab.methods.parts.peft_method import PeftMethod, is_meta, two_rates
from lab.methods.parts.target_modules import (
    LinearLayer,
    is_tied,
    module_names,
    peft_targets,
    target_layers,
    targets_option,
    weights_of,
)
from lab.schema import option

DECOMPOSES_BASE = ("pissa", "olora")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int = option(
        16,
        "LoRA rank",
        "Rank r of the update; trainable parameters grow linearly with it.",
        min=1,
        max=1024,
    )
    alpha: float = option(
        32.0,
        "LoRA alpha",
        "The update is scaled by alpha / rank; twice the rank is usual. Changing only the rank "
        "changes the effective learning rate.",
        above=0.0,
        max=65_536,
    )
    dropout: float = option(
        0.05, "LoRA dropout", "Dropout probability on the adapter input.", min=0.0, max=0.95
    )
    target_modules: str | list[str] = targets_option()
    init_lora_weights: str = option(
        "default",
        "Initialisation",
        "Initial A and B: default (A uniform, B zero), gaussian (A normal, B zero), orthogonal, "
        "pissa (top singular vectors) or olora (QR).",
        choices=("default", "gaussian", "orthogonal", "pissa", "olora"),
        formerly="start",
    )
    bias: str = option(
        "none",
        "Trainable biases",
        "none, those of the target modules (lora_only), or all biases of the model.",
        choices=("none", "lora_only", "all"),
    )
    use_rslora: bool = option(
        False,
        "rsLoRA scaling",
        "Rank-stabilised LoRA: scale by alpha / √rank, so that high ranks keep learning.",
        formerly="rslora",
    )
    use_dora: bool = option(
        False,
        "DoRA",
        "Weight-decomposed LoRA: also train the magnitude of each weight row. Slower.",
        formerly="dora",
    )
    loraplus_lr_ratio: float = option(
        1.0,
        "LoRA+ ratio",
        "Learning rate of B divided by that of A; 1 turns LoRA+ off, its paper recommends 16.",
        min=1.0,
        max=1000.0,
        formerly="lr_ratio",
    )
    last_rank: int | None = option(
        None,
        "Rank of the last layer",
        "Ranks change linearly from LoRA rank in the first layer to this. Not set: the same rank"
        " everywhere.",
        min=1,
        max=1024,
    )
    layer_ranks: list[int] | None = option(
        None,
        "Rank per layer",
        "One rank per layer, first to last, instead of LoRA rank.",
        min=1,
        max=1024,
    )
    last_alpha: float | None = option(
        None,
        "Alpha of the last layer",
        "Alphas change linearly from LoRA alpha in the first layer to this. Not set: alpha / "
        "rank is the same in all layers.",
        above=0.0,
        max=65_536,
    )
    layer_alphas: list[float] | None = option(
        None, "Alpha per layer", "One alpha per layer, first to last.", above=0.0, max=65_536
    )
    modules_to_save: list[str] | None = option(
        None,
        "Fully trained modules",
        "Modules trained in full next to the adapter (PEFT: modules_to_save), e.g. "
        "input_layernorm, embeddings, head.",
        names=True,
        formerly="train_also",
    )


@register(
    "lora",
    title="LoRA",
    source="arXiv:2106.09685",
    summary="Freezes the base and trains a low-rank update beside its linear layers. A small file, "
    "little training state, and the base stays as it was.",
    formula="y = W₀x + (α/r) B A x",
    parameter_formula="Σ over targets of r (d_in + d_out)",
    description="The base stays frozen. Beside each chosen weight stand two low-rank matrices: A "
    "brings the input down to r numbers, B brings them back up. B starts at zero, so "
    "the first step begins exactly at the base. Only A and B get gradients and "
    "moments, which is why the training state shrinks a hundredfold, and their "
    "product can be added into the weight afterwards at no cost.",
    diagram_labels={"attention": "+ B·A", "feed_forward": "+ B·A"},
    config=LoraConfig,
    default_lr=2e-4,
    can_merge=True,
    is_standard=True,
)
class Lora(PeftMethod):
    peft_class = "LoraConfig"

    def check(self, model: Any, config: Any, context: Context) -> list[Problem]:
        problems = super().check(model, config, context)
        if problems:
            return problems
        if config.bias != "none" and not _biases(model, config):
            where = "the target modules have" if config.bias == "lora_only" else "this model has"
            problems.append(
                Problem(
                    "method.bias",
                    f"is {config.bias} and has no effect: {where} no biases. Leave it out.",
                )
            )
        layers = target_layers(model, config.target_modules)
        problems += problems_by_layer(layers, config)
        if config.init_lora_weights == "olora" and any(layer.is_conv1d for layer in layers):
            problems.append(
                Problem(
                    "method.init_lora_weights",
                    "is olora, which needs nn.Linear layers; Conv1D keeps its weight transposed "
                    "and the QR has the wrong shape. Choose pissa or default.",
                )
            )
        if config.init_lora_weights in DECOMPOSES_BASE:
            problems += too_high_ranks(layers, config)
        if config.use_dora and config.init_lora_weights in DECOMPOSES_BASE:
            problems.append(
                Problem(
                    "method.use_dora",
                    f"cannot be combined with init_lora_weights {config.init_lora_weights}: the "
                    "result is saved as a plain difference to the base, which holds no DoRA norms. "
                    "Choose default there.",
                )
            )
        return problems + _problems_with_also(model, layers, config)

    def peft_config_kwargs(self, config: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "r": config.rank,
            "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
            "lora_dropout": config.dropout,
            "target_modules": peft_targets(config.target_modules),
        }
        chosen = {
            "init_lora_weights": config.init_lora_weights != "default" and config.init_lora_weights,
            "bias": config.bias != "none" and config.bias,
            "use_rslora": config.use_rslora,
            "use_dora": config.use_dora,
        }
        return settings | {key: value for key, value in chosen.items() if value}

    def peft_config_kwargs_for(self, model: Any, config: Any, context: Context) -> dict[str, Any]:
        settings = self.peft_config_kwargs(config)
        layers = target_layers(model, config.target_modules)
        by_layer = ranks_and_alphas(layers, config)
        if any(pair != (config.rank, config.alpha) for pair in by_layer.values()):
            settings["rank_pattern"] = {re.escape(n): pair[0] for n, pair in by_layer.items()}
            settings["alpha_pattern"] = {re.escape(n): pair[1] for n, pair in by_layer.items()}
        if config.modules_to_save:
            names, _ = module_names(model, config.modules_to_save)
            settings["modules_to_save"] = names
            settings["ensure_weight_tying"] = is_tied(model)
        if is_meta(model) and config.init_lora_weights in DECOMPOSES_BASE:
            del settings["init_lora_weights"]  # there are no values to decompose
        return settings

    def script_before(self, config: Any) -> list[str]:
        return lora_script.before(config)

    def script_settings(self, config: Any) -> dict[str, str]:
        return super().script_settings(config) | lora_script.settings(config)

    def script_after(self, config: Any) -> list[str]:
        return lora_script.after(config, config.init_lora_weights in DECOMPOSES_BASE)

    def apply(self, model: Any, config: Any, context: Context) -> Any:
        model = super().apply(model, config, context)
        if config.init_lora_weights in DECOMPOSES_BASE and not is_meta(model):
            model.initial_factors = {
                name: weight.detach().clone() for name, weight in _factors(model).items()
            }
        return model

    def trainable_count(self, model: Any, config: Any, context: Context) -> int:
        layers = target_layers(model, config.target_modules)
        by_layer = ranks_and_alphas(layers, config)
        total = sum(by_layer[layer.name][0] * (layer.d_in + layer.d_out) for layer in layers)
        if config.use_dora:
            total += sum(layer.d_out for layer in layers)
        if config.bias != "none":
            total += sum(bias.numel() for bias in _biases(model, config).values())
        names, _ = module_names(model, config.modules_to_save or [])
        return int(total + sum(weight.numel() for weight in weights_of(model, names)))

    def needs_separate_base(self, config: Any) -> bool:
        changes = config.bias != "none" or config.init_lora_weights in DECOMPOSES_BASE
        return changes or super().needs_separate_base(config)

    def param_groups(self, model: Any, config: Any, learning_rate: float) -> list[dict[str, Any]]:
        if config.loraplus_lr_ratio == 1.0:
            return super().param_groups(model, config, learning_rate)
        ratio = config.loraplus_lr_ratio
        return two_rates(model, learning_rate, lambda name: ".lora_B." in name, ratio)

    def state(self, model: Any) -> dict[str, Any]:
        return getattr(model, "initial_factors", {})

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Checks that this machine took the base apart as the first attempt did."""
        import torch

        for name, start in getattr(model, "initial_factors", {}).items():
            if name not in state or not torch.equal(start.cpu(), state[name].cpu()):
                raise LabError(
                    "The PiSSA/OLoRA initialisation differs from the one in the checkpoint.",
                    "Resume on the machine and the versions that the run was started on.",
                )

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        if hasattr(model, "initial_factors"):
            _save_as_plain_lora(model, folder)


def _biases(model: Any, config: Any) -> dict[str, Any]:
    """The biases that train where config.bias is lora_only or all, by name."""
    biases = {name: weight for name, weight in model.named_parameters() if "bias" in name}
    if config.bias == "all":
        return biases
    target_biases = {f"{layer.name}.bias" for layer in target_layers(model, config.target_modules)}
    return {name: weight for name, weight in biases.items() if name in target_biases}


def _problems_with_also(model: Any, layers: list[LinearLayer], config: Any) -> list[Problem]:
    """Unknown names, which PEFT would pass over in silence, and modules that have an update."""
    if not config.modules_to_save:
        return []
    known = [name for name, _ in model.named_modules() if name]
    parts = sorted({name.rsplit(".", 1)[-1] for name in known})
    words = ", ".join(part for part in parts if not part.isdecimal())
    problems = patterns.problems(
        "method.modules_to_save",
        config.modules_to_save,
        [*known, "embeddings", "head"],
        f"names no module of this model. Choose from: embeddings, head, {words}.",
    )
    if problems:
        return problems
    names, _ = module_names(model, config.modules_to_save)
    for layer in layers:
        inside = [name for name in names if f"{layer.name}.".startswith(f"{name}.")]
        if inside:
            problems.append(
                Problem(
                    "method.modules_to_save",
                    f"'{inside[0]}' holds {layer.name}, which has an update already. Leave one "
                    "out.",
                )
            )
            break
    return problems


def _factors(model: Any) -> dict[str, Any]:
    return {
        name: weight
        for name, weight in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def _save_as_plain_lora(model: Any, folder: Path) -> None:
    """Rewrite a saved PiSSA or OLoRA as what was learned: rank 2r on the untouched base."""
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    saved = load_file(file)
    for name, start in model.initial_factors.items():
        key = name.replace(".default.", ".")
        begin = start.to(saved[key])
        parts = [saved[key], begin] if ".lora_A." in name else [saved[key], -begin]
        saved[key] = torch.cat(parts, dim=0 if ".lora_A." in name else 1).contiguous()
    save_file(saved, file, metadata={"format": "pt"})
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    # the scale alpha / r (or alpha / sqrt(r)) stays what it was
    times = math.sqrt(2) if settings["use_rslora"] else 2
    settings["r"] *= 2
    settings["lora_alpha"] *= times
    settings["rank_pattern"] = {k: 2 * v for k, v in settings["rank_pattern"].items()}
    settings["alpha_pattern"] = {k: times * v for k, v in settings["alpha_pattern"].items()}
    settings["init_lora_weights"] = True
    text = json.dumps(settings, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
