"""A model of the hub as a folder: what it holds is judged before its weights are downloaded.

Only JSON, the tokenizer's files and safetensors are ever fetched. The configs come first; then the
headers of the weights, by ranges of bytes; then, for who needs them, the weights.
"""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.models import folder as folders
from lab.models import headers
from lab.models.catalog import ModelSource
from lab.models.headers import Stored
from lab.schema import quote

SMALL = re.compile(r"[^/]+\.(json|txt|jinja|model|tiktoken)|additional_chat_templates/[^/]+\.jinja")
MOST_SMALL_BYTES = 200_000_000
CHUNK = 100_000  # more than most headers have


def local_folder(source: ModelSource, *, with_weights: bool) -> Path:
    """The folder of a source, checked; a model of the hub is fetched into the hub's cache first.

    Raises LabError for what may not be loaded. What the hub's client raises passes through.
    """
    place = Path(source.location)
    if place.is_absolute():
        folders.check(place, source.id, needs_weights=with_weights)
        return place
    if source.local_only:
        place = _cached(source)
    else:
        sizes = _sizes(source)
        place = _fetch(source, _small(sizes))
        folders.check_configs(place, source.id)
        if with_weights:
            remote_tensors(source, sizes, place)
            wanted = folders.weight_names(sizes, place / folders.INDEX, source.id)
            place = _fetch(source, [*_small(sizes), *wanted])
    folders.check(place, source.id, needs_weights=with_weights)
    return place


def stored_tensors(source: ModelSource) -> dict[str, Stored]:
    """What the weights of a source hold, from headers alone, downloaded or not."""
    if Path(source.location).is_absolute() or source.local_only:
        place = local_folder(source, with_weights=True)
        return folders.stored_tensors(place, source.id)
    sizes = _sizes(source)
    return remote_tensors(source, sizes, _fetch(source, _small(sizes)))


def remote_tensors(source: ModelSource, sizes: dict[str, int], place: Path) -> dict[str, Stored]:
    """The tensors of the hub's files; `place` holds the index. Nothing but headers is fetched."""
    tensors: dict[str, Stored] = {}
    for name in folders.weight_names(sizes, place / folders.INDEX, source.id):
        tensors |= _remote_header(source.location, place.name, name, sizes[name])
    return tensors


def _sizes(source: ModelSource) -> dict[str, int]:
    """Bytes of each file at the top of the repository, by name."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi().list_repo_tree(source.location, recursive=True)
    return {entry.path: int(entry.size) for entry in entries if isinstance(entry, RepoFile)}


def _small(sizes: dict[str, int]) -> list[str]:
    return [
        name for name, size in sizes.items() if SMALL.fullmatch(name) and size <= MOST_SMALL_BYTES
    ]


def _cached(source: ModelSource) -> Path:
    """The folder of what the hub's cache holds of a model. Raises FileNotFoundError."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source.location, "config.json")
    if not isinstance(config, str):
        raise FileNotFoundError("it is not in the local cache")
    return Path(config).parent


def _fetch(source: ModelSource, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    # a name is taken as a pattern; the brackets that it may hold are taken literally
    patterns = [re.sub(r"([*?\[])", r"[\1]", name) for name in names]
    assert all(fnmatch.fnmatchcase(*pair) for pair in zip(names, patterns, strict=True))
    return Path(snapshot_download(source.location, allow_patterns=patterns))


@lru_cache(maxsize=512)
def _remote_header(model: str, commit: str, name: str, size: int) -> dict[str, Stored]:
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(model, name, revision=commit)
    start = _bytes(url, 0, min(size, CHUNK))
    length = headers.header_length(start[:8], size, name)
    if 8 + length > len(start):
        start += _bytes(url, len(start), 8 + length)
    return headers.parse(start[8 : 8 + length], size - 8 - length, name)


def _bytes(url: str, begin: int, end: int) -> bytes:
    """Bytes [begin, end) of a file of the hub, never more, whatever it sends."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    if begin >= end:
        return b""
    asked = {**build_hf_headers(), "range": f"bytes={begin}-{end - 1}"}
    received: Any = bytearray()
    with get_session().stream("GET", url, headers=asked, timeout=30) as response:
        hf_raise_for_status(response)
        if begin and response.status_code != 206:
            raise LabError(
                f"The hub does not send parts of '{quote(url)}'.",
                "Download the model by hand.",
            )
        for chunk in response.iter_bytes():
            received += chunk
            if len(received) >= end - begin:
                break
    return bytes(received[: end - begin])
