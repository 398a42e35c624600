"""What LoRA's plain script says of options that only the model can fill in: ranks by layer, modules
that train in full, and the start that PiSSA and OLoRA are saved against."""

from __future__ import annotations

from typing import Any

from lab.errors import LabError
from lab.methods.parts.script_lines import linear_lines, names_lines
from lab.methods.parts.target_modules import ALL_LINEAR, target_entries

ROLES = ("embeddings", "head")


def before(config: Any) -> list[str]:
    """Lines that set RATES, `ranks` and `alphas` by module, and `also`, where options need them."""
    lines = []
    if config.loraplus_lr_ratio != 1.0:
        lines += [f'RATES = {{".lora_B.": {config.loraplus_lr_ratio}}}']
    if _varies(config):
        lines += _rank_lines(config)
    if config.modules_to_save:
        lines += _also_lines(config.modules_to_save)
    return lines


def settings(config: Any) -> dict[str, str]:
    """Arguments of PEFT's config beside those that follow from the options alone."""
    chosen: dict[str, str] = {}
    if _varies(config):
        chosen |= {"rank_pattern": "ranks", "alpha_pattern": "alphas"}
    if config.modules_to_save:
        tied = "model.get_output_embeddings().weight is model.get_input_embeddings().weight"
        chosen |= {"modules_to_save": "also", "ensure_weight_tying": tied}
    return chosen


def after(config: Any, decomposes_base: bool) -> list[str]:
    if not decomposes_base:
        return []
    unconvertible = {
        "bias": config.bias != "none",
        "modules_to_save": bool(config.modules_to_save),
        "use_rslora and ranks by layer": config.use_rslora and _varies(config),
    }
    if names := [name for name, is_set in unconvertible.items() if is_set]:
        raise LabError(
            f"There is no plain script for init_lora_weights {config.init_lora_weights} with "
            f"{', '.join(names)}: PEFT cannot write it as a difference to the base."
        )
    return [
        "# saved as what is learned: the difference to this start, on the untouched base",
        'model.peft_config["default"].init_lora_weights = True',
        'model.save_pretrained("output/start")',
        f'model.peft_config["default"].init_lora_weights = {config.init_lora_weights!r}',
        'SAVE = {"path_initial_model_for_weight_conversion": "output/start"}',
    ]


def _varies(config: Any) -> bool:
    values = (config.last_rank, config.layer_ranks, config.last_alpha, config.layer_alphas)
    return any(value is not None for value in values)


def _rank_lines(config: Any) -> list[str]:
    lines = linear_lines("targets")
    if config.target_modules == ALL_LINEAR:
        lines.append(
            "targets = [n for n in targets if layers[n] is not model.get_output_embeddings()]"
        )
    else:
        lines.append(f"targets = {names_lines(target_entries(config.target_modules), 'targets')}")
    rank, alpha = f"{config.rank}", f"{config.alpha} * rank / {config.rank}"
    if config.layer_ranks:
        rank = f"{config.layer_ranks}[min(index, {len(config.layer_ranks) - 1})]"
    elif config.last_rank is not None:
        rank = f"round({config.rank} + {config.last_rank - config.rank} * index / last)"
    if config.layer_alphas:
        alpha = f"{config.layer_alphas}[min(index, {len(config.layer_alphas) - 1})]"
    elif config.last_alpha is not None:
        alpha = f"{config.alpha} + {config.last_alpha - config.alpha} * index / last"
    return [
        *lines,
        'matches = {name: re.search(r"\\.(\\d+)\\.", f".{name}.") for name in targets}',
        "indices = {name: int(match[1]) for name, match in matches.items() if match}",
        "last = max([1, *indices.values()])",
        "ranks, alphas = {}, {}",
        "for name, index in indices.items():",
        f"    rank = {rank}",
        "    ranks[re.escape(name)] = rank",
        f"    alphas[re.escape(name)] = {alpha}",
    ]


def _also_lines(entries: list[str]) -> list[str]:
    names = [entry for entry in entries if entry not in ROLES]
    return [
        "parts = dict(model.named_modules())",
        "roles = {",
        '    "embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()',
        "}",
        f"also = {names_lines(names, 'parts')}",
        f"for role in {[entry for entry in entries if entry in ROLES]}:",
        "    also += [name for name, module in parts.items() if module is roles[role]]",
    ]
