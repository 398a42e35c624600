"""The models that a person can choose from without knowing an id: title, size, licence, context."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
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
    """Whether the hub's cache on this machine holds the model's config. Looked up without the
    hub's client, whose import would hold up the page."""
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    folder = cache / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    return any(folder.glob("*/config.json"))


def is_hub_id(text: str) -> bool:
    return "/" in text and catalog.HUB_ID.fullmatch(text) is not None


@dataclass(frozen=True)
class HubModel:
    """What the hub says of a model."""

    id: str
    parameters: int | None
    license: str
    downloads: int
    is_gated: bool


def search_hub(text: str, limit: int = 20) -> list[HubModel]:
    """Text-generation models of the hub that match, the most downloaded first.

    Raises LabError if the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not catalog.hub_is_reachable():
        raise LabError("The Hugging Face Hub cannot be reached.", "Choose from the catalogue.")
    try:
        entries = list(
            HfApi().list_models(
                search=text,
                pipeline_tag="text-generation",
                sort="downloads",
                limit=limit,
                expand=["downloads", "gated", "safetensors", "cardData"],
            )
        )
    except (HfHubHTTPError, OSError) as error:
        raise LabError(f"The search failed: {error}.", "Try again.") from None
    return [
        HubModel(
            entry.id,
            getattr(entry.safetensors, "total", None),
            str(getattr(entry.card_data, "license", None) or "not stated"),
            int(entry.downloads or 0),
            bool(entry.gated),
        )
        for entry in entries
        if is_hub_id(entry.id)
    ]
