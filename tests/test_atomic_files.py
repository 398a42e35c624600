"""Small files that are whole or not there, and folders that are ours."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from lab import atomic_files


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "state.json"
    atomic_files.write_json(file, {"a": 1})

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, full)
            with pytest.raises(OSError, match="No space"):
                atomic_files.write_json(file, {"a": 2})
        assert json.loads(file.read_text()) == {"a": 1}, broken
        assert [path.name for path in tmp_path.iterdir()] == ["state.json"], (
            "Nothing is left aside."
        )


def test_readers_never_see_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the rename the old content is whole, and what is renamed is on the disk."""
    file = tmp_path / "state.json"
    file.write_text("old")
    order: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"
        order.append(kind)
        real_sync(handle)

    def replace(source: Any, target: Any) -> None:
        assert Path(target).read_text() == "old" and Path(source).read_text() == "new"
        order.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    atomic_files.write_atomic(file, "new")
    assert order == ["file", "rename", "folder"], "Durable before anybody can see it."
    file.write_text("old")
    order.clear()
    atomic_files.write_atomic(file, "new", durable=False)
    assert order == ["rename"]


def test_threads_that_write_the_same_file_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    contents = [str(number) * 20_000 for number in range(4)]
    failed: list[BaseException] = []

    def write(content: str) -> None:
        try:
            for _ in range(40):
                atomic_files.write_atomic(file, content, durable=False)
                assert file.read_text() in contents
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and [path.name for path in tmp_path.iterdir()] == ["heartbeat"]


@pytest.mark.parametrize("content", ["", "{", "\0", "[" * 100_000, '"\\ud800'])
def test_what_is_no_json_reads_as_nothing(tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    assert atomic_files.read_json(file) is None and atomic_files.read_object(file) is None
    assert atomic_files.read_json(tmp_path / "none") is None


def test_only_objects_are_objects(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for value in ([1], 3, "x", None, True):
        atomic_files.write_json(file, value)
        assert atomic_files.read_json(file) == value and atomic_files.read_object(file) is None
    atomic_files.write_json(file, {"a": math.inf})
    assert atomic_files.read_object(file) == {"a": math.inf}


def test_sizes_do_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 10_000)
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_bytes(b"x" * 100)
    (folder / "b").write_bytes(b"x" * 11)
    assert atomic_files.size_of(folder) == 111
    (folder / "link").symlink_to(outside)
    (folder / "broken").symlink_to(tmp_path / "none")
    assert atomic_files.size_of(folder) < 1000
    assert atomic_files.size_of(tmp_path / "none") == 0


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    link = tmp_path / "link"
    link.symlink_to(kept)
    atomic_files.remove_tree(link)
    assert not link.is_symlink() and (kept / "file").exists()
    atomic_files.remove_tree(kept)
    assert not kept.exists()
    atomic_files.remove_tree(tmp_path / "none")


def test_no_more_is_read_than_the_caller_allows(tmp_path: Path) -> None:
    file = tmp_path / "four"
    file.write_bytes(b"abcd")
    assert atomic_files.read_bytes(file, 4) == b"abcd"
    with pytest.raises(OSError, match="has 4 bytes; at most 3 are read"):
        atomic_files.read_bytes(file, 3)


@pytest.mark.parametrize(
    ("number", "is_raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)]
)
def test_a_file_system_that_cannot_sync_folders_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_raised: bool
) -> None:
    """A merged model may be written to a USB stick; a disk that fails is told all the same."""
    (tmp_path / "file").write_text("x")
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        synced.append("file")

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match=r"\[Errno") if is_raised else contextlib.nullcontext():
        atomic_files.sync_tree(tmp_path)
    assert synced == ["file"]


def test_a_file_that_was_replaced_or_written_to_is_another(tmp_path: Path) -> None:
    """Each of inode, size and time alone tells them apart."""
    file, other = tmp_path / "a", tmp_path / "b"
    assert atomic_files.file_identity(file) == ()
    file.write_text("one")
    os.utime(file, ns=(0, 10**18))
    first = atomic_files.file_identity(file)
    assert atomic_files.file_identity(file) == first
    other.write_text("two")
    os.utime(other, ns=(0, 10**18))
    assert atomic_files.file_identity(other) != first, "of the same size and time"
    file.write_text("longer")
    os.utime(file, ns=(0, 10**18))
    assert atomic_files.file_identity(file) != first, "of the same inode and time"
    file.write_text("one")
    os.utime(file, ns=(0, 10**18 + 1))
    assert atomic_files.file_identity(file) != first, "of the same inode and size"
