"""Whether a model folder is safe to load, and whole: weights in safetensors, and no code.

Everything is decided from JSON and headers, without transformers. What a config names beyond the
folder (code, kernels, other files, other models) is refused: the libraries would follow it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lab.atomic_files import read_json, read_object
from lab.errors import LabError
from lab.models import headers
from lab.models.headers import Stored
from lab.schema import quote

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# transformers reads a folder with such a file as a checkpoint of several processes
PART_OF_DISTRIBUTED = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")
TOKENIZER_CLASS = re.compile(r"(?!Auto)[A-Za-z0-9_]*(Tokenizer(Fast)?|sBackend|PythonBackend)")
ATTENTION = ("eager", "sdpa", "flex_attention", *(f"flash_attention_{n}" for n in (2, 3, 4)))
EXPERTS = ("eager", "batched_mm", "grouped_mm")
IMPLEMENTATIONS = {
    f"{before}{kind}_implementation{behind}": allowed
    for kind, allowed in (("attn", ATTENTION), ("experts", EXPERTS))
    for before in ("", "_")
    for behind in ("", "_internal")
}
# Fields of any config, at any depth, that make a library read, fetch or run something else.
ELSEWHERE = {
    "auto_map": "needs code of its own",
    "custom_generate": "needs code of its own",
    "custom_pipelines": "needs code of its own",
    "configuration_files": "keeps its config in another file",
    "transformers_weights": "names another file for its weights",
    "fusion_config": "wants its layers rewritten",
    "use_kernels": "wants kernels of the hub",
    "kernel_config": "wants kernels of the hub",
    "use_pretrained_backbone": "loads another model",
    "use_timm_backbone": "loads another model",
    "gguf_file": "names another file",
    "tokenizer_object": "names an object",
    "post_processor": "names an object",
    "init_inputs": "hands arguments of its own to a tokenizer",
}
TYPES = re.compile(r"(torch\.)?(auto|float(16|32|64)?|half|double|bfloat16|float8_\w{1,20}|u?int8)")


def check(folder: Path, name: str, *, needs_weights: bool = True) -> None:
    """Raise LabError unless `folder` holds a model that can be loaded as it is.

    `name` is what messages call it. Without `needs_weights` a config alone will do.
    """
    check_configs(folder, name)
    if needs_weights:
        stored_tensors(folder, name)


def check_configs(folder: Path, name: str) -> None:
    """The JSON files that say what the libraries load beside the weights."""
    file = folder / "config.json"
    config = read_object(file) if file.is_file() else None  # a pipe would never end
    if config is None:
        raise LabError(
            f"The folder '{quote(name)}' has no readable config.json.",
            "A model folder holds config.json, *.safetensors and a tokenizer.",
        )
    check_config(config, name)
    if (folder / "adapter_config.json").exists():
        raise LabError(
            f"'{quote(name)}' holds an adapter (adapter_config.json) beside a model, which "
            "would be "
            "loaded with it.",
            "Give the folder of the base model, without adapter_config.json.",
        )
    check_tokenizer(folder, name)
    _check_generation(folder, name)


def check_config(config: dict[str, Any], name: str, file: str = "config.json") -> None:
    """Raise LabError if a config names code, or anything outside its own folder."""
    for key, value in _fields(config):
        if key in ELSEWHERE and (value or key == "auto_map"):
            if key == "auto_map":
                way_out = (
                    "The lab never runs code that comes with a model. Choose an architecture that "
                    "transformers knows."
                )
            else:
                way_out = f"Remove {key} from {file}, or choose another model."
            raise LabError(
                f"The model in '{quote(name)}' {ELSEWHERE[key]} ({key} in {file}).", way_out
            )
        if key in IMPLEMENTATIONS:
            _check_implementation(key, value, IMPLEMENTATIONS[key], f"{file} of '{quote(name)}'")
        if (
            key in ("dtype", "torch_dtype")
            and isinstance(value, str)
            and not TYPES.fullmatch(value)
        ):
            raise LabError(
                f"{file} of '{quote(name)}' names the unknown type '{quote(value)}' ({key}).",
                "Write float32, float16 or bfloat16.",
            )
        if key == "tokenizer_class":
            _check_class(value, f"{file} of '{quote(name)}'")


def check_tokenizer(folder: Path, name: str) -> None:
    """Raise LabError if the tokenizer's config would load something that is no tokenizer."""
    for file in ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        if not (folder / file).is_file():
            continue
        config = read_object(folder / file)
        if config is None:
            raise LabError(
                f"{file} of '{quote(name)}' is not a JSON object.",
                "Copy or download it again.",
            )
        check_config(config, name, file)
        versions = config.get("fast_tokenizer_files")
        if versions and not (
            isinstance(versions, list)
            and all(_is_plain(file_name, ".json") for file_name in versions)
        ):
            raise LabError(
                f"{file} of '{quote(name)}' names other files ({quote(versions)}).",
                "fast_tokenizer_files is a list of names of JSON files in the same folder.",
            )


def stored_tensors(folder: Path, name: str) -> dict[str, Stored]:
    """Every tensor that would be loaded, by its stored name. Raises LabError."""
    tensors: dict[str, Stored] = {}
    for file in weight_files(folder, name):
        tensors |= headers.read(file)
    if not tensors:
        raise LabError(f"The weights of '{quote(name)}' hold no tensors.", "Download them again.")
    return tensors


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files that transformers loads from `folder`, each a file of its own in it."""
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    return [file_inside(folder, file, name) for file in weight_names(names, folder / INDEX, name)]


def weight_names(names: Iterable[str], index: Path, name: str) -> list[str]:
    """Which of `names` (a folder's files) hold the weights. `index` is read where there is no
    single file."""
    names = list(names)
    for part in filter(PART_OF_DISTRIBUTED.fullmatch, names):
        raise LabError(
            f"'{quote(name)}' holds {part}, a part of a distributed checkpoint.",
            "Save the model as one folder with save_pretrained.",
        )
    if WEIGHTS in names:
        return [WEIGHTS]
    if not any(file.endswith(".safetensors") for file in names):
        raise LabError(
            f"The folder '{quote(name)}' has no *.safetensors weights.",
            "Other formats can run code when they are loaded; convert them to safetensors.",
        )
    if not index.is_file():
        raise LabError(
            f"The folder '{quote(name)}' has neither {WEIGHTS} nor {INDEX}.",
            "Several files of weights need that index; one file is called as the first.",
        )
    return _of_index(index, names, name)


def _of_index(index: Path, names: list[str], name: str) -> list[str]:
    listed = read_object(index) or {}
    weight_map, metadata = listed.get("weight_map"), listed.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        raise LabError(
            f"{INDEX} of '{quote(name)}' has no weight_map and metadata.",
            "Download it again.",
        )
    for value in weight_map.values():
        if not _is_plain(value, ".safetensors"):
            raise LabError(
                f"{INDEX} of '{quote(name)}' names '{quote(value)}', which is not the name of a "
                ".safetensors file in the same folder.",
                "Other formats can run code when they are loaded; convert them to safetensors.",
            )
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if file not in names]
    if missing:
        raise LabError(
            f"'{quote(name)}' lacks {quote(', '.join(missing[:3]))}, which its {INDEX} names.",
            "Download the missing files.",
        )
    return files


def file_inside(folder: Path, file: str, name: str) -> Path:
    """The path of `file`, if it lies in `folder`, or in the blobs of the hub's cache."""
    allowed = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        allowed.append(folder.resolve().parent.parent / "blobs")
    try:
        target = (folder / file).resolve()
        is_ours = target.parent in allowed and target.is_file()
    except (OSError, RuntimeError):  # links in a circle
        is_ours = False
    if not is_ours:
        raise LabError(
            f"{quote(file)} of '{quote(name)}' is a link that leaves the folder, or not a file.",
            "Copy the weights into the folder.",
        )
    return folder / file


def _check_generation(folder: Path, name: str) -> None:
    file = folder / "generation_config.json"
    if not file.is_file():
        return
    config = read_json(file)
    ids = [
        token_id
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        for token_id in _listed((config if isinstance(config, dict) else {}).get(key))
    ]
    if not isinstance(config, dict) or not all(type(token_id) is int for token_id in ids):
        raise LabError(
            f"{file.name} of '{quote(name)}' is not an object with numbers as token ids.",
            "Correct it, or remove it: the model's config is enough.",
        )
    check_config(config, name, file.name)


def _check_implementation(key: str, value: Any, allowed: tuple[str, ...], where: str) -> None:
    choices = list(value.values()) if isinstance(value, dict) else [value]
    for choice in choices:
        if choice is None or (isinstance(choice, str) and choice in allowed):
            continue
        is_kernel = isinstance(choice, str) and "/" in choice
        why = "which is code of the hub" if is_kernel else "which the lab does not know"
        raise LabError(
            f"{where} asks for '{quote(choice)}' ({key}), {why}.",
            f"Remove {key}, or choose one of: {', '.join(allowed)}.",
        )


def _check_class(value: Any, where: str) -> None:
    """transformers takes any class of its own by that name, models included."""
    if value is None or (isinstance(value, str) and TOKENIZER_CLASS.fullmatch(value)):
        return
    raise LabError(
        f"{where} names '{quote(value)}' as tokenizer_class, which is not a tokenizer.",
        "Write PreTrainedTokenizerFast, or remove it.",
    )


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of a parsed JSON value, at any depth."""
    waiting = [value]
    while waiting:
        now = waiting.pop()
        if isinstance(now, dict):
            yield from now.items()
            waiting.extend(now.values())
        elif isinstance(now, list):
            waiting.extend(now)


def _is_plain(value: Any, suffix: str) -> bool:
    """Whether it is the name of a file in the same folder."""
    return (
        isinstance(value, str)
        and value.endswith(suffix)
        and not value.startswith(".")
        and not any(char in value for char in "/\\\0")
    )


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
