"""Search the Hub for models: what can be trained, how large it is, under which licence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lab.atomic_files import finite_number, part
from lab.hub import client, repository
from lab.hub.problems import HubError

FIELDS = ("downloads", "gated", "private", "tags", "safetensors", "siblings", "cardData", "sha")
MAX_RESULTS = 100


@dataclass(frozen=True)
class HubModel:
    """One model of the Hub as a search gives it; None is what the Hub does not say."""

    id: str
    parameters: int | None
    license: str
    downloads: int
    is_gated: bool
    has_safetensors: bool

    def to_json(self) -> dict[str, Any]:
        stored = asdict(self)
        stored["gated"], stored["safetensors"] = (
            stored.pop("is_gated"),
            stored.pop("has_safetensors"),
        )
        return stored


def models(text: str, limit: int = 20) -> list[HubModel]:
    """Models that write text and have `text` in their names, the most downloaded first. Raises
    HubError."""
    params = {
        "search": text,
        "limit": min(limit, MAX_RESULTS),
        "sort": "downloads",
        "direction": "-1",
        "filter": "text-generation",
        "expand": list(FIELDS),
    }
    listed, _ = client.get_json("/api/models", f"The search for '{text}'", params)
    if not isinstance(listed, list):
        raise HubError(
            f"The search for '{text}' cannot be read: {client.host()} gives no list.",
            "Check HF_ENDPOINT: some mirrors hold files only.",
            kind="server",
        )
    return [_model(entry) for entry in listed[:limit] if _is_model(entry)]


def _is_model(entry: Any) -> bool:
    name = entry.get("id") or entry.get("modelId") if isinstance(entry, dict) else None
    return isinstance(name, str) and repository.is_id(name)


def _model(entry: dict[str, Any]) -> HubModel:
    tags = [tag for tag in _list(entry.get("tags")) if isinstance(tag, str)]
    licenses = [tag.partition(":")[2] for tag in tags if tag.startswith("license:")]
    stated = part(entry, "cardData").get("license")
    names = [part(sibling).get("rfilename") for sibling in _list(entry.get("siblings"))]
    total = finite_number(part(entry, "safetensors").get("total"))
    return HubModel(
        id=str(entry.get("id") or entry.get("modelId")),
        parameters=int(total) if total else None,
        license=(licenses or [stated if isinstance(stated, str) else ""])[0][:60] or "not stated",
        downloads=int(finite_number(entry.get("downloads")) or 0),
        is_gated=entry.get("gated") not in (None, False, "false"),
        has_safetensors="safetensors" in tags
        or bool(total)
        or any(str(name).endswith(".safetensors") for name in names),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
