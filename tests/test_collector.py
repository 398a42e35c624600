"""The collector of cycles is off while much is made, and on again whatever happens."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from lab import collector

IMPORTED = """
import gc
from lab.library_imports import import_libraries

runs = []
gc.callbacks.append(lambda phase, info: runs.append(phase))
import_libraries(with_peft=False)
assert not runs, "nothing is collected while libraries are imported"
assert gc.isenabled() and gc.get_freeze_count() > 300_000
frozen = gc.get_freeze_count()
kept = [[] for _ in range(1000)]
import_libraries(with_peft=False)
assert gc.get_freeze_count() == frozen, "what came since may go"
import_libraries()
import sys
assert "peft" in sys.modules and gc.get_freeze_count() > frozen
"""


def test_it_pauses_and_goes_on() -> None:
    with collector.paused():
        assert not gc.isenabled()
        with collector.paused():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the outer pause goes on"
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), collector.paused():
        print(1 / 0)
    assert gc.isenabled()


def test_what_is_frozen_is_only_what_was_there() -> None:
    before = gc.get_freeze_count()
    with collector.paused():
        pass
    assert gc.get_freeze_count() == before


def test_libraries_are_imported_without_it_and_frozen_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
