"""Commands: which holds, how long a stop waits, and how the main thread is interrupted."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.errors import Cancelled
from lab.paths import RunDir
from lab.train import commands
from lab.train.commands import Commands


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    run.commands.mkdir()
    return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_an_interruption_that_was_lost_is_repeated_after_a_while(
    run: RunDir, clock: list[float]
) -> None:
    heard = Commands(run)
    heard.interrupting = commands.WHILE_TRAINING
    (run.commands / "stop").touch()
    heard._on_interrupt()  # a stop waits for the end of the step
    (run.commands / "cancel").touch()
    with pytest.raises(Cancelled):
        heard._on_interrupt()
    heard._on_interrupt()  # what cleans up is not interrupted again
    clock[0] += commands.AGAIN_S + 1
    with pytest.raises(Cancelled):
        heard._on_interrupt()


def test_the_most_urgent_command_holds_and_only_a_save_is_answered_once(run: RunDir) -> None:
    answers = Commands(run)
    assert answers.look() is None and answers.take() is None
    for name in ("save", "stop", "cancel"):
        (run.commands / name).touch()
        assert answers.look() == name, "each is more urgent than those before it"
    for name in ("cancel", "stop"):
        assert answers.take() == answers.take() == name, f"a {name} stays until the attempt ends"
        (run.commands / name).unlink()
    assert answers.look() == answers.look() == "save", "a look takes nothing"
    assert answers.take() == "save" and answers.take() is None
    answers.stop_signal = True
    assert answers.take() == answers.take() == "stop", "what SIGTERM means"


def test_a_stop_waits_from_when_it_was_first_seen(run: RunDir, clock: list[float]) -> None:
    answers = Commands(run)
    (run.commands / "save").touch()
    assert answers.stop_waits() == 0.0
    clock[0] += 100.0
    (run.commands / "stop").touch()
    assert answers.stop_waits() == 0.0
    clock[0] += 45.0
    assert answers.stop_waits() == 45.0
    clock[0] += 45.0
    assert answers.stop_waits() == 90.0
    (run.commands / "cancel").touch()
    assert answers.stop_waits() == 0.0, "a cancel has a way of its own"


def test_signals_are_heard_within_and_given_back(run: RunDir) -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    answers = Commands(run)
    with pytest.raises(KeyError), answers.heard():
        assert signal.getsignal(signal.SIGTERM) not in before
        os.kill(os.getpid(), signal.SIGTERM)
        assert answers.look() == "stop"
        answers.interrupt()  # nothing is interrupted by now
        time.sleep(0)
        answers.interrupting = commands.BEFORE_TRAINING
        with pytest.raises(Cancelled) as ended:
            answers.interrupt()
            time.sleep(1)  # which the signal ends
        assert ended.value.command == "stop"
        raise KeyError
    assert [signal.getsignal(number) for number in numbers] == before
    assert answers.interrupting == commands.NEVER, "a late signal finds nothing to interrupt"
