"""The cache keeps what was used last, and no more of it than it may."""

from __future__ import annotations

import threading

from lab.recent import Recent


def test_the_least_recently_used_entry_goes_first() -> None:
    cache: Recent[str, int] = Recent(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1, "looking at it is using it"
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3) and len(cache) == 2
    assert cache.pop("a") == 1 and cache.get("a") is None


def test_threads_that_ask_at_once_share_one_entry() -> None:
    cache: Recent[str, object] = Recent(4)
    entries: list[object] = []
    threads = [
        threading.Thread(target=lambda: entries.append(cache.get_or("run", object)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entries) == 8 and len(set(map(id, entries))) == 1


def test_get_or_bounds_and_refreshes_too() -> None:
    cache: Recent[int, str] = Recent(2)
    for key in (1, 2, 1, 3):
        assert cache.get_or(key, lambda key=key: f"made for {key}") == f"made for {key}"
    assert (cache.get(1), cache.get(2), cache.get(3)) == ("made for 1", None, "made for 3")


def test_a_stale_entry_is_made_anew() -> None:
    versions: Recent[str, int] = Recent(2)
    assert versions.get_or("a", lambda: 1) == 1
    assert versions.get_or("a", lambda: 2, is_stale=lambda version: version < 1) == 1
    assert versions.get_or("a", lambda: 2, is_stale=lambda version: version < 2) == 2
    assert versions.get("a") == 2 and len(versions) == 1
