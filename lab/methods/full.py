"""Full fine-tuning: every parameter trains, or those of chosen layers.

theta <- theta - lr * dL/dtheta for all N parameters of the base model. AdamW keeps two moments
a parameter, so the training state is three to four times the weights.
Trainable = N, the number of parameters of the base (tied weights counted once), less the frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError, Problem
from lab.methods import Context, Method, Unsupported, register
from lab.methods.parts import patterns
from lab.methods.parts.diagram import ALL
from lab.methods.parts.script_lines import regex_of
from lab.models import fit
from lab.models import folder as folders
from lab.models.decoder_structure import decoder_layers, is_norm, parse_layers
from lab.schema import option

PARTS = ("embeddings", "head", "norms", "biases")


@dataclass(frozen=True, kw_only=True)
class FullConfig:
    train_layers: str = option(
        "all",
        "Trainable layers",
        'all, or some decoder layers: "last 4", "first 2", "7", "4-11". With the last layer, the'
        " final norm and an untied head train too.",
        max_characters=60,
    )
    freeze: list[str] | None = option(
        None,
        "Frozen modules",
        "Parts kept frozen: embeddings, head, norms, biases, names of modules such as mlp, or re: "
        "and a regular expression over names of parameters. Tied weights freeze together.",
        max_characters=4096,
        names=True,
    )


@register(
    "full",
    title="Full fine-tuning",
    source="arXiv:1801.06146",
    summary="Trains every parameter. The most capacity to learn new facts, the most memory, and "
    "the most forgetting on narrow data.",
    config=FullConfig,
    formula="θ ← θ − η ∇L(θ)",
    parameter_formula="N: every parameter of the base that is not frozen, tied weights once",
    description="Nothing is frozen: each step moves every weight a little against its gradient. "
    "That is the most capacity, so it can take in new facts, and the largest bill: gradients and "
    "two moments for each weight. On narrow data the same freedom lets the model forget what it "
    "could do before, so the learning rate is ten times lower than with adapters.",
    diagram_labels={
        "embeddings": ALL,
        "attention": ALL,
        "norm": ALL,
        "feed_forward": ALL,
        "head": ALL,
    },
    default_lr=2e-5,
    can_merge=Unsupported("there is nothing to merge: the result is a whole model."),
    can_quantise_base=Unsupported(
        "4-bit and 8-bit weights are integers with a shared scale and take no gradient. Choose "
        "qlora to train on such a base."
    ),
    saves_whole_model=True,
    is_standard=True,
    lighter_method="lora",
)
class Full(Method):
    def check(self, model: Any, config: FullConfig, context: Context) -> list[Problem]:
        problems = []
        try:
            if config.train_layers != "all":
                parse_layers(config.train_layers, len(decoder_layers(model)[1]))
        except LabError as error:
            problems.append(Problem("method.train_layers", str(error)))
        problems += _freeze_problems(model, config.freeze or [])
        if not problems and not selected(model, config):
            problems.append(
                Problem("method.freeze", "leaves nothing to train. Freeze less, or choose lora.")
            )
        return problems

    def apply(self, model: Any, config: FullConfig, context: Context) -> Any:
        model.requires_grad_(False)
        for weight in selected(model, config).values():
            weight.requires_grad_(True)
        return model

    def trainable_count(self, model: Any, config: FullConfig, context: Context) -> int:
        return sum(weight.numel() for weight in selected(model, config).values())

    def script(self, config: FullConfig) -> list[str]:
        return [*_layer_lines(config), *_freeze_lines(config)]

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)

    def load(self, base: Any, folder: Path) -> Any:
        """`base` with the trained weights in place of its own, in the type of `base`."""
        from lab.models.weights import has_weights, read_weights

        self.check_saved(base, folder)
        if has_weights(base, folder):
            return read_weights(base, folder)
        # transformers writes some architectures (GPT-NeoX) under the hub's older names
        return type(base).from_pretrained(
            folder, dtype=base.dtype, use_safetensors=True, local_files_only=True
        )

    def check_saved(self, base: Any, folder: Path) -> None:
        folders.check(folder, folder.name)
        fit.check(base.config, folders.stored_tensors(folder, folder.name), folder.name)


def selected(model: Any, config: FullConfig) -> dict[str, Any]:
    """The parameters that train, by name, tied ones once."""
    chosen = dict(model.named_parameters())
    if config.train_layers != "all":
        prefix, layers = decoder_layers(model)
        indices = parse_layers(config.train_layers, len(layers))
        starts = tuple(f"{prefix}.{index}." for index in indices)
        above = _above(model) if indices[-1] == len(layers) - 1 else set()
        chosen = {
            name: weight
            for name, weight in chosen.items()
            if name.startswith(starts) or id(weight) in above
        }
    frozen = {name for pattern in config.freeze or [] for name in _frozen_by(model, pattern)}
    return {name: weight for name, weight in chosen.items() if name not in frozen}


def _above(model: Any) -> set[int]:
    """Ids of the modules after the last layer: the final norm, and the head unless it is tied."""
    prefix, layers = decoder_layers(model)
    parts = list(model.get_submodule(prefix.rpartition(".")[0]).children())
    behind = next(index for index, part in enumerate(parts) if part is layers) + 1
    norms = {id(w) for part in parts[behind:] if is_norm(part) for w in part.parameters()}
    tied = {id(weight) for weight in model.get_input_embeddings().parameters()}
    head = {id(weight) for weight in model.get_output_embeddings().parameters()}
    return norms | (head - tied)


def _freeze_problems(model: Any, entries: list[str]) -> list[Problem]:
    """Entries of `freeze` that name no parameter, and invalid patterns."""
    nothing = (
        f"names no parameter of this model. Write one of {', '.join(PARTS)}, a module such as "
        "mlp, or a pattern such as re:.*q_proj.*"
    )
    problems = []
    for entry in entries:
        if entry in PARTS:
            known = list(_frozen_by(model, entry))
            problems += [] if known else [Problem("method.freeze", f"'{entry}' {nothing}")]
        else:
            known = list(_owners(model, entry))
            problems += patterns.problems("method.freeze", [entry], known, nothing)
    return problems


def _owners(model: Any, entry: str) -> dict[str, list[str]]:
    """Names that `entry` can mean, with the parameters at or below each: a pattern is one over
    names of parameters, any other entry may be the name of a module."""
    owners: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")
        first = len(parts) if patterns.is_pattern(entry) else 1
        for count in range(first, len(parts) + 1):
            owners.setdefault(".".join(parts[:count]), []).append(name)
    return owners


def _frozen_by(model: Any, entry: str) -> set[str]:
    """Names of the parameters that one entry of `freeze` means. Raises re.error for a bad pattern,
    LabError for one that takes long."""
    named = dict(model.named_parameters())
    if entry == "biases":
        return {name for name in named if name.endswith("bias")}
    if entry not in PARTS:
        owners = _owners(model, entry)
        return {name for owner in patterns.named(entry, owners) for name in owners[owner]}
    modules = {
        "embeddings": [model.get_input_embeddings()],
        "head": [model.get_output_embeddings()],
        "norms": [module for module in model.modules() if is_norm(module)],
    }[entry]
    ids = {id(weight) for module in modules for weight in module.parameters()}
    return {name for name, weight in named.items() if id(weight) in ids}


def _layer_lines(config: FullConfig) -> list[str]:
    """Lines of a plain script: only `train_layers` and what stands above them train."""
    if config.train_layers == "all":
        return []
    return [
        "named = model.named_modules()",
        "lists = [(name, part) for name, part in named if isinstance(part, torch.nn.ModuleList)]",
        "path, layers = max(lists, key=lambda p: sum(w.numel() for w in p[1].parameters()))",
        f"chosen = {_places(config.train_layers)}",
        "trains = {id(w) for layer in chosen for w in layer.parameters()}",
        "if chosen[-1] is layers[-1]:  # with the last layer, the final norm and an untied head",
        '    parts = list(model.get_submodule(path.rpartition(".")[0]).children())',
        "    behind = parts[[part is layers for part in parts].index(True) + 1 :]",
        '    norms = [part for part in behind if "norm" in type(part).__name__.lower()]',
        "    tied = {id(w) for w in model.get_input_embeddings().parameters()}",
        "    trains |= {id(w) for part in norms for w in part.parameters()}",
        "    trains |= {id(w) for w in model.get_output_embeddings().parameters()} - tied",
        "for weight in model.parameters():",
        "    weight.requires_grad_(id(weight) in trains)",
    ]


def _places(text: str) -> str:
    """The slice of `layers` that "last 4", "first 4", "7" or "4-11" means, as source text."""
    words = text.strip().lower().replace(" - ", "-").split()
    if words[0] == "last":
        return f"layers[-{words[1]}:]"
    if words[0] == "first":
        return f"layers[:{words[1]}]"
    ends = words[0].split("-")
    return f"layers[{ends[0]} : {int(ends[-1]) + 1}]"


def _freeze_lines(config: FullConfig) -> list[str]:
    """Lines of a plain script: what `freeze` names does not train."""
    entries = config.freeze or []
    modules = {
        "embeddings": "[model.get_input_embeddings()]",
        "head": "[model.get_output_embeddings()]",
        "norms": '[m for m in model.modules() if "norm" in type(m).__name__.lower()]',
    }
    lines = [
        line
        for entry in entries
        if entry in modules
        for line in (
            f"for module in {modules[entry]}:",
            "    module.requires_grad_(False)",
        )
    ]
    names = [entry for entry in entries if entry not in PARTS and not patterns.is_pattern(entry)]
    over = [regex_of([entry]) for entry in entries if patterns.is_pattern(entry)]
    over += [rf"({regex_of([name])})(\..*)?" for name in names]
    over += [".*bias"] if "biases" in entries else []
    if over:
        lines += [
            "for name, weight in model.named_parameters():",
            f"    if re.fullmatch({'|'.join(over)!r}, name):",
            "        weight.requires_grad_(False)",
        ]
    return lines
