"""The models that a person can choose from without knowing an id: title, size, licence, context."""

from __future__ import annotations

from dataclasses import dataclass

from lab.hub import repository
from lab.models import catalog, shipped_configs


@dataclass(frozen=True)
class ListedModel:
    """`id` is what a spec names; `config_id` is what an estimate needs, without weights."""

    id: str
    title: str
    parameters: int
    license: str
    context: int | None
    config_id: str
    is_installed: bool

    @property
    def download_bytes(self) -> int:
        """Weights of two bytes a parameter, as the hub keeps them."""
        return 2 * self.parameters


def listed() -> list[ListedModel]:
    """The built-in models and the shipped architectures with the ids of their weights: those that
    are here first, then by size."""
    built_in = [
        ListedModel(
            f"builtin:{model.name}",
            model.title,
            model.parameters,
            model.license,
            _context(model.parameters),
            f"builtin:{model.name}" if model.is_ready else _config_id(model.parameters),
            model.is_ready,
        )
        for model in catalog.BUILT_IN
    ]
    sizes = {model.parameters for model in built_in}
    shipped = [
        ListedModel(
            config.hub_id,
            config.hub_id.partition("/")[2],
            config.parameters,
            config.license,
            config.context,
            config.id,
            is_cached(config.hub_id),
        )
        for config in shipped_configs.shipped()
        if config.parameters not in sizes
    ]
    return sorted([*built_in, *shipped], key=lambda m: (not m.is_installed, m.parameters))


def _same(parameters: int) -> shipped_configs.ShippedConfig | None:
    """The architecture of a built-in model, which has as many parameters."""
    return next((c for c in shipped_configs.shipped() if c.parameters == parameters), None)


def _context(parameters: int) -> int | None:
    config = _same(parameters)
    return config.context if config else None


def _config_id(parameters: int) -> str:
    config = _same(parameters)
    return config.id if config else ""


def is_cached(hub_id: str) -> bool:
    """Whether the hub's cache on this machine holds weights of the model; the config alone is
    there after an estimate."""
    folder = repository.folder_of("models", hub_id) / "snapshots"
    return any(folder.glob("*/*.safetensors"))


def is_hub_id(text: str) -> bool:
    return "/" in text and repository.is_id(text)
