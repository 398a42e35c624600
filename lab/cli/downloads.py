"""Models of the Hub that a command needs: how much is to come, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

from lab.chat.models import ModelRef
from lab.cli.console import say
from lab.formatting import size
from lab.hub.progress import DownloadForecast, DownloadProgress
from lab.models import catalog, hub

SAY_S = 5.0  # between two lines about one download


def fetch_models(names: Iterable[ModelRef]) -> None:
    """Download what is missing of the adapters and bases of `names`, said on stderr. Raises
    LabError."""
    names = list(names)
    for adapter in dict.fromkeys(named.adapter for named in names if named.adapter):
        download = partial(hub.adapter_folder, adapter.source, with_weights=True)
        _fetch(adapter.source.location, hub.adapter_download(adapter.source), download)
    for base in dict.fromkeys(named.base for named in names):
        source = catalog.resolve(base)
        download = partial(hub.local_folder, source, with_weights=True)
        _fetch(base, hub.download_size(source), download)


def _fetch(name: str, still: DownloadForecast | None, download: Callable[..., object]) -> None:
    if still is None or not still.bytes:
        return
    say(f"Downloading {name}: {size(still.bytes)} to {still.folder} ...", error=True)
    said_at = time.monotonic()

    def tell(progress: DownloadProgress) -> None:
        nonlocal said_at
        is_whole = progress.done >= progress.total
        if is_whole or time.monotonic() - said_at < SAY_S:
            return
        said_at = time.monotonic()
        say(f"Downloading {name}: {progress.in_words()}", error=True)

    download(tell=tell)
    say(f"Downloaded {name}.", error=True)
