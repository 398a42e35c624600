"""Bases on the Hub that a command needs: how much is to come, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterable

from lab.chat.models import ModelRef
from lab.cli.console import say
from lab.formatting import size
from lab.hub.progress import DownloadProgress
from lab.models import catalog, hub

SAY_S = 5.0  # between two lines about one download


def fetch_bases(names: Iterable[ModelRef]) -> None:
    """Download what is missing of the bases of `names`, said on stderr. Raises LabError."""
    for base in dict.fromkeys(named.base for named in names):
        source = catalog.resolve(base)
        still = hub.download_size(source)
        if still is None or not still.bytes:
            continue
        say(f"Downloading {base}: {size(still.bytes)} to {still.folder} ...", error=True)
        said_at = [time.monotonic()]

        def tell(
            progress: DownloadProgress, base: str = base, said_at: list[float] = said_at
        ) -> None:
            is_whole = progress.done >= progress.total
            if is_whole or time.monotonic() - said_at[0] < SAY_S:
                return
            said_at[0] = time.monotonic()
            say(f"Downloading {base}: {progress.in_words()}", error=True)

        hub.local_folder(source, with_weights=True, tell=tell)
        say(f"Downloaded {base}.", error=True)
