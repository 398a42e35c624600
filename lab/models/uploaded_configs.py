"""Configs that a person uploaded: architectures without weights, for estimates.

Each lies in `LAB_HOME/uploads/configs/HASH`, so that an address which names it opens it again.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from lab import json_text, paths
from lab.atomic_files import read_object, write_atomic
from lab.errors import LabError
from lab.formatting import quantity
from lab.schema import quote

PREFIX = "uploaded:"
MAX_CONFIG_BYTES = 1_000_000  # bytes of a config.json
HASH = re.compile(r"[0-9a-f]{16}", re.ASCII)
MAX_NAME_CHARS = 80


@dataclass(frozen=True)
class UploadedConfig:
    """`name`: what a person knows it by; it comes with the file, so it may hold anything."""

    id: str
    name: str
    folder: Path


def keep(content: bytes, file_name: str) -> UploadedConfig:
    """Store a config.json under the hash of its content. Raises LabError."""
    if len(content) > MAX_CONFIG_BYTES:
        raise LabError(
            f"The file has {quantity(len(content), 'byte')}; 1,000,000 is the most.",
            "A config.json has a few kB.",
        )
    try:
        config = json_text.parse(content)
    except json_text.BadJson as error:
        raise LabError(f"The file is not JSON: {error}.", "Upload a model's config.json.") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise LabError("This is not a model config.json.", "It must name a model_type.")
    digest = hashlib.sha256(content).hexdigest()[:16]
    folder = paths.make_folder(_root() / digest)
    write_atomic(folder / "name.json", json.dumps({"name": _name(config, file_name)}))
    write_atomic(folder / "config.json", json.dumps(config))
    return get(PREFIX + digest)


def get(config_id: str) -> UploadedConfig:
    """The config of an id such as uploaded:0123456789abcdef. Raises LabError."""
    digest = config_id.removeprefix(PREFIX)
    folder = _root() / digest
    if not HASH.fullmatch(digest) or not (folder / "config.json").is_file():
        raise LabError(
            f"There is no uploaded config '{quote(config_id)}' in this lab.",
            "Upload the config.json again.",
        )
    name = (read_object(folder / "name.json") or {}).get("name")
    return UploadedConfig(PREFIX + digest, str(name or digest), folder)


def uploaded() -> list[UploadedConfig]:
    """All of them, by name."""
    if not _root().is_dir():
        return []
    ids = [
        PREFIX + entry.name
        for entry in _root().iterdir()
        if HASH.fullmatch(entry.name) and (entry / "config.json").is_file()
    ]
    return sorted(map(get, ids), key=lambda config: (config.name.lower(), config.id))


def _root() -> Path:
    return paths.home() / "uploads" / "configs"


def _name(config: dict[str, Any], file_name: str) -> str:
    """The file's own name where it has one, else what the config says of itself."""
    stem = PurePath(file_name).stem
    if stem and not stem.lower().startswith("config"):
        return stem[:MAX_NAME_CHARS]
    origin = config.get("_name_or_path")
    if isinstance(origin, str) and PurePath(origin).name:
        return PurePath(origin).name[:MAX_NAME_CHARS]
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    width = config.get("hidden_size") or config.get("n_embd")
    sizes = [quantity(layers, "layer") if layers else "", f"width {width}" if width else ""]
    return ", ".join([str(config["model_type"]), *filter(None, sizes)])[:MAX_NAME_CHARS]
