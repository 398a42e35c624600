"""Adapters that PEFT has written, of the Hub or in a folder, as models of a chat.

An adapter is named adapter:ID, and adapter:ID@BASE where it stands on another base than its config
names (a base that was moved, or an unquantised copy of it). ID is an id of the Hub, with a revision
or without, or a folder. Only its config, its safetensors and its tokenizer are read, and the config
is held against what the lab knows before PEFT sees it (`lab.methods.parts.adapter_files`).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.atomic_files import read_object
from lab.errors import LabError
from lab.hub import repository, settings
from lab.models import catalog, hub
from lab.models.catalog import ModelSource
from lab.models.file_list import ADAPTER, ADAPTER_WEIGHTS
from lab.schema import quote

PREFIX = "adapter:"
# peft_type to the config class that reads it
PEFT_CLASSES = {
    "LORA": "LoraConfig",
    "ADALORA": "AdaLoraConfig",
    "IA3": "IA3Config",
    "LOHA": "LoHaConfig",
    "LOKR": "LoKrConfig",
    "OFT": "OFTConfig",
    "VERA": "VeraConfig",
    "LN_TUNING": "LNTuningConfig",
    "PROMPT_TUNING": "PromptTuningConfig",
    "P_TUNING": "PromptEncoderConfig",
    "PREFIX_TUNING": "PrefixTuningConfig",
    "TRAINABLE_TOKENS": "TrainableTokensConfig",
}


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter whose config was read: where it lies, at one commit, and the id of its base."""

    source: ModelSource
    base: str
    peft_type: str
    rank: int | None = None
    virtual_tokens: int = 0
    changes_base: bool = False  # whether loading it writes into tensors of its base

    @property
    def kind(self) -> str:
        return PEFT_CLASSES[self.peft_type]

    @property
    def folder(self) -> Path:
        return hub.adapter_folder(self.source, with_weights=False)

    @property
    def state(self) -> Any:
        """What differs as soon as other weights lie under the same name."""
        if self.source.is_on_hub:
            return self.source.revision
        try:
            info = (Path(self.source.location) / ADAPTER_WEIGHTS).stat()
        except OSError:
            return None
        return [info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]

    def receipt(self) -> dict[str, Any]:
        """What an answer's receipt keeps of it: the commit, and the sha256 of its weights."""
        folder = hub.adapter_folder(self.source, with_weights=True)
        with (folder / ADAPTER_WEIGHTS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"adapter": self.source.id, "weights": {ADAPTER_WEIGHTS: digest}}


def split(name: str) -> tuple[str, str]:
    """(id, id of the base or "") of adapter:ID or adapter:ID@BASE."""
    rest = name.removeprefix(PREFIX)
    if _is_folder(rest):
        return rest, ""  # a folder whose name holds an @
    adapter, _, base = rest.partition("@")
    return adapter, base


def is_name(name: str) -> bool:
    """Whether an adapter can have this name; nothing is asked of the Hub."""
    adapter_id = split(name)[0]
    return _is_folder(adapter_id) or repository.is_id(adapter_id)


def find(name: str) -> PeftAdapter:
    """The adapter that `name` (adapter:ID or adapter:ID@BASE) means. Of one of the Hub its list of
    files and its config are read. Raises LabError."""
    adapter_id, base = split(name)
    source = hub.pin(_source(adapter_id))
    config = read_object(hub.adapter_config(source)) or {}
    peft_type = config.get("peft_type")
    if peft_type not in PEFT_CLASSES:
        raise LabError(
            f"'{quote(adapter_id)}' is an adapter of the type {quote(peft_type)}, which cannot be "
            "loaded here.",
            f"Known types: {', '.join(PEFT_CLASSES)}.",
        )
    if base:
        catalog.resolve(base)
    else:
        base = _base_of(adapter_id, config, trusted=not source.is_on_hub)
    rank, virtual = config.get("r"), config.get("num_virtual_tokens")
    return PeftAdapter(
        source,
        base,
        peft_type,
        rank if type(rank) is int else None,
        virtual if type(virtual) is int else 0,
        changes_base=config.get("bias") not in (None, "none"),
    )


def cached() -> dict[str, str]:
    """The adapters whose weights are in the hub's cache: name → title."""
    names: dict[str, str] = {}
    for weights in sorted(settings.cache_folder().glob(f"models--*/snapshots/*/{ADAPTER_WEIGHTS}")):
        repo = weights.parents[2].name.removeprefix("models--").replace("--", "/")
        if (weights.parent / ADAPTER).is_file() and repository.is_id(repo):
            names[f"{PREFIX}{repo}"] = repo.rpartition("/")[2]
    return names


def _source(adapter_id: str) -> ModelSource:
    if _is_folder(adapter_id) or adapter_id.startswith(("/", "./", "../", "~")):
        folder = Path(os.path.expanduser(adapter_id)).absolute()
        if not (folder / ADAPTER).is_file():
            raise LabError(
                f"There is no {ADAPTER} in '{quote(adapter_id)}'.",
                "Give the folder that PEFT's save_pretrained has written.",
            )
        return ModelSource(str(folder), str(folder), local_only=True)
    if not repository.is_id(adapter_id):
        raise LabError(
            f"'{quote(adapter_id)}' names no adapter.",
            "Give ORG/NAME of the Hub, or a folder; as the name of a model adapter:ORG/NAME.",
        )
    location, revision = repository.split_id(adapter_id)
    return ModelSource(adapter_id, location, settings.is_offline(), revision=revision)


def _is_folder(text: str) -> bool:
    try:
        return "/" in text and Path(os.path.expanduser(text)).is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


def _base_of(adapter_id: str, config: dict[str, Any], *, trusted: bool) -> str:
    """The base that an adapter's config names, at its revision. A config of the Hub may only name a
    model of the Hub: a path in it is one of somebody else's machine."""
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    way_out = f"Name it: adapter:{quote(adapter_id)}@BASE, with a Hub ID or a folder as BASE."
    if not isinstance(base, str) or not base:
        raise LabError(f"The adapter '{quote(adapter_id)}' does not name its base model.", way_out)
    if repository.is_id(base) and isinstance(revision, str) and revision and "#" not in base:
        base = f"{base}#{revision}" if repository.is_id(f"{base}#{revision}") else base
    try:
        if not trusted and not repository.is_id(base):
            raise LabError("It is a path.")
        catalog.resolve(base)
    except LabError:
        raise LabError(
            f"The adapter '{quote(adapter_id)}' was trained on '{quote(base)}', which is not here.",
            way_out,
        ) from None
    return base
