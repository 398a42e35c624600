"""Commands interrupt the main thread, again where Python has lost the exception."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.errors import Cancelled
from lab.paths import RunDir
from lab.train import commands
from lab.train.commands import Commands


def test_an_interruption_that_was_lost_is_repeated_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run = RunDir(tmp_path)
    run.commands.mkdir()
    heard = Commands(run)
    heard.interrupting = commands.WHILE_TRAINING
    (run.commands / "stop").touch()
    heard._on_interrupt()  # a stop waits for the end of the step
    (run.commands / "cancel").touch()
    with pytest.raises(Cancelled):
        heard._on_interrupt()
    heard._on_interrupt()  # what cleans up is not interrupted again
    now[0] += commands.AGAIN_S + 1
    with pytest.raises(Cancelled):
        heard._on_interrupt()
