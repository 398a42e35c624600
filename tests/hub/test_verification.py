"""A file that was verified is read again as soon as it may hold something else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

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
