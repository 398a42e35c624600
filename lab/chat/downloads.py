"""What a model to talk to needs from the Hub, fetched before anybody waits for its turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator

from lab.chat.models import ModelRef
from lab.errors import Cancelled
from lab.hub.progress import DownloadProgress
from lab.models import catalog, hub

LOOK_S = 1.0


def fetch(named: ModelRef, is_gone: Callable[[], bool]) -> Generator[str]:
    """Download what is missing of the base and the adapter, saying how far that is.

    It ends soon after `is_gone()` says that nobody wants the answer any more; what has come is
    kept. Raises LabError.
    """
    source = catalog.resolve(named.base)
    adapter = named.adapter.source if named.adapter is not None else None
    if not source.is_on_hub and not (adapter and adapter.is_on_hub):
        return
    progress_lines, errors = [""], list[BaseException]()

    def tell(progress: DownloadProgress) -> None:
        is_whole = progress.done >= progress.total
        progress_lines[0] = "" if is_whole else f"downloading {progress.in_words()}"
        if is_gone():
            raise Cancelled

    def work() -> None:
        try:
            if adapter is not None:
                hub.adapter_folder(adapter, with_weights=True, tell=tell)
            hub.local_folder(source, with_weights=True, tell=tell)
        except BaseException as error:  # raised again by the thread that answers
            errors.append(error)

    thread = threading.Thread(target=work, name="fetch", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_S)
        if progress_lines[0]:
            yield progress_lines[0]
    for error in errors:
        if not isinstance(error, Cancelled):
            raise error
