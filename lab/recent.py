"""The one cache in memory: bounded, shared by threads, the least recently used entry goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The `max_entries` entries that were used last. None cannot be an entry."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
            return value

    def put(self, key: Key, value: Value) -> Value:
        """Keep `value` and return it; another thread's entry for the key is replaced."""
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            while len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)
        return value

    def get_or(
        self,
        key: Key,
        make: Callable[[], Value],
        is_stale: Callable[[Value], bool] = lambda value: False,
    ) -> Value:
        """The entry, or what `make` returns if there is none or it `is_stale`. Threads wait for
        each other: both functions must be quick."""
        with self._lock:
            value = self._entries.pop(key, None)
            if value is None or is_stale(value):
                value = make()
            self._entries[key] = value
            while len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)
        return value

    def shrink(self, most: float, size: Callable[[Value], float]) -> None:
        """Let the least recently used go until the sizes of all sum to `most`; the last one stays
        whatever its size."""
        with self._lock:
            total = sum(map(size, self._entries.values()))
            while total > most and len(self._entries) > 1:
                total -= size(self._entries.popitem(last=False)[1])

    def pop(self, key: Key) -> Value | None:
        with self._lock:
            return self._entries.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)
