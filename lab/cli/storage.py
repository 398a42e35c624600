"""Where the files of models and datasets go, how much of them there is, and how to move them."""

from __future__ import annotations

import shutil
from typing import Any

from lab import paths
from lab.atomic_files import size_of
from lab.data import hub
from lab.formatting import size
from lab.hub import credentials, settings


def facts() -> dict[str, Any]:
    """The folders with their bytes, and how the Hub is reached."""
    cache = settings.cache_folder()
    existing = next(folder for folder in [cache, *cache.parents] if folder.exists())
    token = credentials.current()
    return {
        "endpoint": settings.endpoint(),
        "offline": settings.is_offline(),
        "token": token.origin if token else None,
        "cache": str(cache),
        "cache_bytes": size_of(cache),
        "cache_free_bytes": shutil.disk_usage(existing).free,
        "datasets": str(hub.folder()),
        "datasets_bytes": size_of(hub.folder()),
        "models": str(paths.models()),
        "models_bytes": size_of(paths.models()),
    }


def rows(storage: dict[str, Any]) -> list[list[str]]:
    """Lines of `doctor`."""
    reached = "offline, by HF_HUB_OFFLINE" if storage["offline"] else storage["endpoint"]
    token = storage["token"] or "no token"
    return [
        ["Hub", f"{reached}; {token}"],
        [
            "Hub models",
            f"{size(storage['cache_bytes'])} in {storage['cache']}, "
            f"{size(storage['cache_free_bytes'])} free there. Move it and set HF_HOME; delete one "
            "by removing its models--ORG--NAME.",
        ],
        [
            "Hub datasets",
            f"{size(storage['datasets_bytes'])} in {storage['datasets']}. Moves with LAB_HOME; "
            "'datasets remove ID' deletes one.",
        ],
        [
            "Built-in models",
            f"{size(storage['models_bytes'])} in {storage['models']}. Move it and set LAB_MODELS.",
        ],
    ]
