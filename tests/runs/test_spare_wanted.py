"""When a spare worker is wanted, and how many there are, without starting one."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lab import process
from lab.runs import actions, queue, supervisor_start, warm_worker


@pytest.fixture(autouse=True)
def no_supervisor(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    started: list[str] = []
    monkeypatch.setattr(supervisor_start, "ensure", lambda: started.append("supervisor"))
    return started


def test_a_spare_is_wanted_for_ten_minutes(
    no_supervisor: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not warm_worker.is_wanted()
    actions.want_warm_worker()
    assert warm_worker.is_wanted() and no_supervisor == ["supervisor"]
    now = time.time()
    for age, wanted in ((590, True), (610, False), (-60, False)):
        with monkeypatch.context() as clock:
            clock.setattr(time, "time", lambda age=age: now + age)
            assert warm_worker.is_wanted() is wanted, f"{age} s ago somebody set up a run."
    actions.want_warm_worker()
    queue.change(spare=False)
    assert not warm_worker.is_wanted(), "The setting says no."


def test_where_the_setting_says_no_nothing_is_started(no_supervisor: list[str]) -> None:
    queue.change(spare=False)
    actions.want_warm_worker()
    assert no_supervisor == [] and not (queue.folder() / "wanted").exists()


class Worker:
    def __init__(self) -> None:
        self.ended: int | None = None

    def poll(self) -> int | None:
        return self.ended


def test_one_is_kept_and_replaced_when_it_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Worker] = []

    def spawn(*_: Any, **__: Any) -> Worker:
        started.append(Worker())
        return started[-1]

    monkeypatch.setattr(process, "spawn", spawn)
    held = warm_worker.WarmWorker()
    held.start()
    held.start()
    assert len(started) == 1, "One is enough."
    started[0].ended = -9
    held.start()
    assert len(started) == 2 and held.worker is started[1]  # type: ignore[comparison-overlap]
