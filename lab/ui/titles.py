"""Names instead of ids: of models, datasets and runs."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from lab import methods
from lab.data import catalog as datasets
from lab.formatting import short_id
from lab.models import catalog as models
from lab.ui.markdown_safety import plain


def model(model_id: str) -> str:
    """ "SmolLM2-135M-Instruct" of builtin:smollm2-135m-instruct or of org/SmolLM2-135M-Instruct."""
    kind, _, name = model_id.partition(":")
    if kind.lower() == "builtin":
        known = (model.title for model in models.BUILT_IN if model.name == name.lower())
        return next(known, name)
    if kind == "config":
        return name
    return str(plain(PurePath(short_id(model_id)).name or model_id))


def dataset(dataset_id: str) -> str:
    """ "Persona chats" of builtin:persona-chats; the file's name of a path."""
    for built_in in datasets.built_in():
        if built_in.id == dataset_id:
            return str(built_in.card["title"])
    kind, _, name = dataset_id.partition(":")
    path = PurePath(name if kind == "upload" else short_id(dataset_id))
    return str(plain(path.name or dataset_id))


def method(options: dict[str, Any]) -> str:
    """ "LoRA r16" of {"name": "lora", "rank": 16}."""
    name = str(options.get("name", ""))
    title = methods.get(name).title if name in methods.names() else name
    rank = options.get("rank")
    return f"{title} r{rank}" if isinstance(rank, int) else title
