"""A file that was verified is read again as soon as it may hold something else."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.hub import verification
from lab.hub.problems import HubError
from lab.hub.verification import is_remembered, remember


@pytest.mark.usefixtures("lab_home")
def test_a_file_that_was_exchanged_in_place_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(b"as the Hub has it")
    remember(file)
    assert is_remembered(file)
    before = file.stat()
    time.sleep(0.05)  # longer than a tick of the file system's clock
    file.write_bytes(b"as it should not!")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert not is_remembered(file), "the time of a write can be set back, that of a change cannot"


@pytest.mark.usefixtures("lab_home")
def test_what_another_program_left_damaged_in_the_cache_is_deleted(tmp_path: Path) -> None:
    whole = b"as the Hub has it"
    blob = tmp_path / hashlib.sha256(whole).hexdigest()
    blob.write_bytes(whole[:-1] + b"?")
    place = tmp_path / "snapshot"
    place.mkdir()
    (place / "model.safetensors").symlink_to(blob)
    repo: Any = SimpleNamespace(subject="The model 'a/b'")
    with pytest.raises(HubError, match=r"model\.safetensors in the cache is damaged") as raised:
        verification.verify(place, repo)
    assert raised.value.kind == "damaged"
    assert not blob.exists(), "Else every start would find it again, and none would fetch it."
    blob.write_bytes(whole)
    read: list[int] = []
    for _ in range(2):
        verification.verify(place, repo, lambda progress: read.append(progress.done))
    assert read == [len(whole)], "Read once: a state that was verified is remembered."


@pytest.mark.usefixtures("lab_home")
def test_what_was_verified_is_remembered_by_its_hash(tmp_path: Path) -> None:
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"as the Hub has it")
    os.link(file, other)
    remember(file)
    assert is_remembered(file)
    assert not is_remembered(other), "These bytes were not held against that name."
