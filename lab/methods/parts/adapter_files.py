"""A PEFT adapter on the disk: judged before PEFT sees it, and read by a config of our own making.

PEFT's own reading follows what adapter_config.json says: other models, modules to import, files
to unpickle, patterns without end. Here a field that no method of the lab sets must hold its
default, sizes must be those of the stored tensors, and the weights come from safetensors only.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

from lab.atomic_files import read_object
from lab.errors import LabError
from lab.library_imports import import_peft
from lab.models import folder as folders
from lab.models import headers
from lab.schema import quote

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# of an adapter that is half of a result: under these names PEFT finds none, and says so
OWN_CONFIG, OWN_WEIGHTS = "lab_adapter_config.json", "lab_adapter_model.safetensors"
# What the lab's methods set, and what PEFT writes of its own accord; `peft_fields` of a method add.
KNOWN = set(
    "peft_type peft_version task_type inference_mode base_model_name_or_path revision "
    "r lora_alpha lora_dropout target_modules init_lora_weights bias use_rslora use_dora "
    "rank_pattern alpha_pattern modules_to_save ensure_weight_tying fan_in_fan_out "
    "init_r target_r total_step tinit tfinal deltaT beta1 beta2 orth_reg_weight "
    "alpha rank_dropout module_dropout decompose_factor decompose_both "
    "vera_dropout d_initial projection_prng_key save_projection "
    "oft_block_size block_share coft eps feedforward_modules token_indices "
    "num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers "
    "num_key_value_heads key_value_dim modules_to_save prefix_projection encoder_hidden_size "
    "encoder_reparameterization_type encoder_num_layers encoder_dropout".split()
)
PATTERN_KEYS = ("rank_pattern", "alpha_pattern")
LITERAL = re.compile(
    r"(\\?[\w.-])+", re.ASCII
)  # a name with its dots escaped: a pattern without repeats
STARTS = (True, False, "gaussian", "orthogonal")
MAX_NUMBER = 10**7
# Where PEFT writes none of it, beside what it leaves out by design
UNREAD = frozenset(
    ("peft_version", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode")
)


def check(base: Any, folder: Path, kind: str, *, only: str = "") -> None:
    """Raise LabError unless `folder` holds an adapter of PEFT's config class `kind` for `base`,
    which may be on the meta device. Only JSON and the header of the weights are read.
    """
    _check_fit(base, folder, kind, only=only)


def keep_from_peft(folder: Path) -> None:
    """Rename a written adapter that is not the whole result."""
    (folder / CONFIG).rename(folder / OWN_CONFIG)
    (folder / WEIGHTS).rename(folder / OWN_WEIGHTS)


def files_of(folder: Path) -> tuple[Path, Path]:
    """(config, weights) of the adapter in `folder`."""
    if (folder / OWN_CONFIG).exists():
        return folder / OWN_CONFIG, folder / OWN_WEIGHTS
    return folder / CONFIG, folder / WEIGHTS


def read(base: Any, folder: Path, kind: str, *, only: str = "") -> Any:
    """`base` with the adapter of `folder` on it, of which only tensors whose names hold `only`.
    Raises LabError where they do not fit."""
    from safetensors.torch import load_file

    from lab.models.weights import first_line, is_out_of_memory

    peft = import_peft()
    settings = config_of(folder, kind, base)
    if only:
        settings.modules_to_save = None
    _check_fit(base, folder, kind, only=only)
    try:
        if only:
            model = peft.get_peft_model(base, settings)
            tensors = load_file(files_of(folder)[1])
            part = {name: tensor for name, tensor in tensors.items() if only in name}
            peft.set_peft_model_state_dict(model, part)
            return model
        with warnings.catch_warnings():
            # what is missing has been looked at
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            return peft.PeftModel.from_pretrained(base, str(folder), config=settings)
    except Exception as error:  # untrusted files
        if is_out_of_memory(error):
            raise
        raise LabError(
            f"The adapter in {folder} cannot be loaded: {first_line(error)}.",
            "It is damaged, or belongs to another base model.",
        ) from None


def config_of(folder: Path, kind: str, base: Any) -> Any:
    """PEFT's config for `base`, of the fields that the lab knows. Raises LabError for any other
    content."""
    peft = import_peft()
    raw, config_class = _raw_config(folder), getattr(peft, kind)
    # without which PEFT cannot make a config of this kind
    defaults = config_class(**({"total_step": 1} if kind == "AdaLoraConfig" else {}))
    expected = defaults.peft_type.value
    if raw.get("peft_type") != expected:
        raise _odd(f"is of the type '{quote(raw.get('peft_type'))}', and {expected} is needed")
    fields = {field.name for field in dataclasses.fields(config_class) if field.init}
    values = {}
    for key, value in raw.items():
        if key in UNREAD or key == "peft_type":
            continue
        if key in KNOWN and key in fields:
            values[key] = _judged(key, value)
        elif not _is_default(value, getattr(defaults, key, None)):
            raise _odd(f"sets '{quote(key)}' to {quote(value)}, which no method of the lab does")
    targets = values.get("target_modules")
    if isinstance(targets, str) and not LITERAL.fullmatch(targets):
        # the modules that the pattern has matched: a stranger's may take for ever
        values["target_modules"] = _adapted(base, tensors_of(folder))
    try:
        config = config_class(**values, inference_mode=True)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _odd(f"is not one of PEFT's: {error}") from None
    return config


def _judged(key: str, value: Any) -> Any:
    """The value of a known field. Raises LabError for a value that the lab does not write."""
    if key == "task_type" and value != "CAUSAL_LM":
        raise _odd(f"is for the task {quote(value)}, and CAUSAL_LM is needed")
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, float)) and not abs(value) <= MAX_NUMBER:
        if key != "projection_prng_key":
            raise _odd(f"sets '{key}' to {quote(value)}, and {MAX_NUMBER:,} is the most")
    if key == "init_lora_weights" and value not in STARTS:
        raise _odd(f"sets '{key}' to {quote(value)}: a saved adapter needs no start")
    if key in PATTERN_KEYS and not (isinstance(value, dict) and all(map(LITERAL.fullmatch, value))):
        raise _odd(f"sets '{key}' to {quote(value)}, and an object by names of modules is needed")
    return value


def _check_fit(base: Any, folder: Path, kind: str, *, only: str = "") -> None:
    """Build the adapter on the meta device, where its size costs nothing, and hold its tensors
    against those of the file."""
    import torch

    from lab.models.weights import empty_like, first_line

    peft = import_peft()
    stored, settings = tensors_of(folder), config_of(folder, kind, base)
    if only:
        settings.modules_to_save = None
    is_pruned = kind == "AdaLoraConfig"  # of each matrix the file holds what is left
    if is_pruned:
        settings.rank_pattern = None
    try:
        with torch.device("meta"):
            model = peft.get_peft_model(empty_like(base), settings)
        needed = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    except LabError:
        raise
    except Exception as error:
        raise LabError(
            f"The adapter in {folder} cannot stand on this base model: {first_line(error)}.",
            "It is damaged, or belongs to another base model.",
        ) from None
    same = _names_of_one_tensor(model)
    for name, tensor in needed.items():
        if name not in stored and same.get(name, {name}) & stored.keys():
            continue  # of two names for one tensor a file holds one
        if name not in stored:
            raise _misfit(folder, f"lacks '{quote(name)}'")
        shapes = stored[name].shape, tuple(tensor.shape)
        is_part = is_pruned and len(shapes[0]) == len(shapes[1])
        if not (
            all(have <= need for have, need in zip(*shapes, strict=True))
            if is_part
            else shapes[0] == shapes[1]
        ):
            raise _misfit(
                folder,
                f"holds '{quote(name)}' {stored[name].shape}, and {tuple(tensor.shape)} is needed",
            )


def _names_of_one_tensor(model: Any) -> dict[str, set[str]]:
    """All names under which a file may hold each parameter of an adapter."""
    names: dict[int, set[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), set()).add(name.replace(".default", ""))
    return {name: group for group in names.values() for name in group}


def _adapted(base: Any, stored: dict[str, headers.Stored]) -> list[str]:
    """The modules of `base` that the stored tensors extend, not those that they replace."""
    base_names = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    modules = {name for name, _ in base.named_modules() if name}
    adapted = set()
    for key in stored:
        name = key.removeprefix("base_model.model.")
        if name in base_names:
            continue
        while name and name not in modules:
            name = name.rpartition(".")[0]
        adapted.add(name)
    if not adapted - {""}:
        raise LabError(f"{WEIGHTS} names no module of this base model.", "Load it on its own base.")
    return sorted(adapted - {""})


def _raw_config(folder: Path) -> dict[str, Any]:
    raw = read_object(files_of(folder)[0])
    if raw is None:
        raise LabError(f"{folder} has no readable {CONFIG}.", "The result is incomplete.")
    return raw


def tensors_of(folder: Path) -> dict[str, headers.Stored]:
    file = files_of(folder)[1]
    # links are those of the hub's cache, and of nobody else
    is_cached = folder.resolve().parent.name == "snapshots"
    if not file.is_file() or (file.is_symlink() and not is_cached):
        raise LabError(f"{folder} has no {WEIGHTS}.", "The result is incomplete.")
    return headers.read(folders.file_inside(folder, file.name, str(folder)))


def _is_default(value: Any, default: Any) -> bool:
    """Whether a field says nothing. Empty values of any kind do."""
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        default = dataclasses.asdict(default)
    return not value or value == default


def _odd(why: str) -> LabError:
    return LabError(f"{CONFIG} {why}.", "It was not written by the lab, or it is damaged.")


def _misfit(folder: Path, why: str) -> LabError:
    return LabError(
        f"{WEIGHTS} in {folder} {why}.", "It is damaged, or belongs to another base model."
    )
