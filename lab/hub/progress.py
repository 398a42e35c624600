"""How far a download is, and what has still to come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from lab import formatting

SPEED_S = 10.0  # over which the speed is measured


@dataclass(frozen=True)
class DownloadForecast:
    """What has still to be fetched of a model of the hub: `bytes` of `total_bytes`, in so many
    files, into `folder`."""

    bytes: int = 0
    total_bytes: int = 0
    files: int = 0
    folder: str = ""


@dataclass
class DownloadProgress:
    """How far a download is: bytes and files, those in the cache counted as done."""

    total: int
    files: int
    done: int = 0
    files_done: int = 0
    received: int = 0  # bytes that came over the network, this time
    checking: bool = False  # hashes of what is there are being read; nothing comes in
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def mark(self) -> None:
        now = time.monotonic()
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[0][0] > SPEED_S:
            self._marks.popleft()

    @property
    def bytes_per_s(self) -> float:
        """Over the last seconds; 0 as long as nothing is known."""
        if len(self._marks) < 2:
            return 0.0
        (began, before), (now, after) = self._marks[0], self._marks[-1]
        return max(0.0, (after - before) / (now - began)) if now > began else 0.0

    @property
    def eta_s(self) -> float | None:
        return (self.total - self.done) / self.bytes_per_s if self.bytes_per_s else None

    def in_words(self) -> str:
        """ "120.00 MB of 540.00 MB, file 2 of 5, 12.00 MB/s"."""
        words = f"{formatting.size(self.done)} of {formatting.size(self.total)}"
        if self.files > 1:
            words += f", {self.files_done} of {self.files} files"
        if self.checking:
            return f"{words}, verifying"
        return f"{words}, {formatting.size(self.bytes_per_s)}/s" if self.bytes_per_s else words


Tell = Callable[[DownloadProgress], object]
