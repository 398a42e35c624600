"""A page gives up what it asked when a newer question takes its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lab.errors import LabError
from lab.preflight.client import Planner
from lab.ui import estimate_panel, method_estimates, waiting
from lab.ui.waiting import BackgroundJob, wait

pytestmark = pytest.mark.usefixtures("forecasts")


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Iterator[Planner]:
    """The pages' planner, whose estimates never end by themselves."""
    server = Planner(module="tests.preflight.server")
    monkeypatch.setattr(
        estimate_panel.planner, "estimate", lambda *_, **__: server.ask({"ask": "spin"})
    )
    yield server
    server.close()


def running(planner: Planner) -> int:
    """The planner's processes; each has one request here."""
    if planner._process is None:
        return 0
    children = psutil.Process(planner._process.pid).children()
    return sum(child.status() != psutil.STATUS_ZOMBIE for child in children)


def until(holds: Callable[[], bool], message: str) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, message
        time.sleep(0.02)


def as_session(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(waiting, "get_script_run_ctx", lambda: SimpleNamespace(session_id=name))


def test_a_session_leaves_what_it_no_longer_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, elsewhere = (BackgroundJob() for _ in range(3))
    as_session(monkeypatch, "anna")
    first.look("here")
    elsewhere.look("there")
    first.look("here")
    assert not first.asking.is_cancelled, "A second look leaves nothing."
    second.look("here")
    assert first.asking.is_cancelled and not second.asking.is_cancelled
    assert not elsewhere.asking.is_cancelled, "Another part of the page is not concerned."


def test_what_another_session_looks_at_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, own = BackgroundJob(), BackgroundJob()
    for name in ("anna", "ben"):
        as_session(monkeypatch, name)
        shared.look("here")
    own.look("here")
    assert not shared.asking.is_cancelled, "Anna still looks at it."
    monkeypatch.setattr(waiting, "GONE_S", -1.0)  # she has closed her browser long ago
    shared.look("here")
    own.look("here")
    assert shared.asking.is_cancelled


def test_a_failure_stays_for_who_saw_it_until_they_ask_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(BackgroundJob):
        def ask(self) -> None:
            raise KeyError("a bug")

    job, other = Broken().start(), BackgroundJob()
    as_session(monkeypatch, "anna")
    job.look("here")
    job.thread.join()
    assert job.is_complete and not job.is_stale, "Her page would ask at every tick."
    as_session(monkeypatch, "ben")
    assert not job.is_stale, "Pages that tick beside each other would ask in turn for ever."
    job.failed_at -= waiting.GONE_S
    assert job.is_stale, "Who comes to it later asks once more."
    as_session(monkeypatch, "anna")
    assert not job.is_stale, "She has seen it, however long ago it failed."
    as_session(monkeypatch, "anna")
    other.look("here")
    assert job.is_stale, "She has changed the form, and changed it back."


class Questions(BackgroundJob):
    """Asks one small question after another."""

    def __init__(self, planner: Planner) -> None:
        super().__init__()
        self.planner, self.answers = planner, 0

    def ask(self) -> None:
        while True:
            self.planner.ask({"ask": "echo", "value": 1, "seconds": 0.01})
            self.answers += 1


def test_questions_end_when_the_page_is_left(
    endless: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else takes the place of what was looked at: the page is closed, or another open."""
    monkeypatch.setattr(waiting, "UNSEEN_S", 0.5)
    as_session(monkeypatch, "anna")
    job = Questions(endless).start()
    until(lambda: job.answers > 1, "Before the first look it works already.")
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        job.look("here")
        time.sleep(0.02)
    assert not job.was_abandoned, "Somebody looks."
    until(lambda: job.was_abandoned, "It goes on, though nobody looks any more.")
    assert not job.is_complete and job.error is None and job.is_stale
    reruns: list[str] = []
    monkeypatch.setattr(waiting.st, "rerun", lambda: reruns.append("the page"))
    job.look("here")
    assert not reruns, "The page that looked a moment ago draws itself."
    monkeypatch.setattr(waiting, "GONE_S", -1.0)
    job.look("here")
    assert reruns, "The page would wait for good."


def test_a_changed_form_ends_the_forecast_of_the_old_one(endless: Planner) -> None:
    old = estimate_panel.job_for({"name": "old form"})
    old.look("forecast")
    until(lambda: running(endless) == 1, "The forecast is asked.")
    new = estimate_panel.job_for({"name": "new form"})
    new.look("forecast")
    until(lambda: old.was_abandoned, "The old form's forecast goes on.")
    until(lambda: running(endless) == 1, "Only the new one's request runs.")
    again = estimate_panel.job_for({"name": "old form"})
    assert again is not old and not again.is_complete, "It is asked anew by who comes back."
    for job in (new, again):
        job.asking.cancel()
    until(lambda: running(endless) == 0, "Nothing is left running.")


def test_another_view_ends_the_survey_of_the_old_one(endless: Planner) -> None:
    view = {"rank": 8, "checkpointing": "off", "model": "config:x", "length": 8, "rows": 1}
    old = method_estimates.job_for(view | {"loss": "fused"}, {"gpu": "T4 16GB"})
    old.look("survey")
    until(lambda: running(endless) == 1, "The survey is asked.")
    new = method_estimates.job_for(view | {"loss": "plain"}, {"gpu": "T4 16GB"})
    new.look("survey")
    until(lambda: old.asking.is_cancelled, "The old view is given up.")
    until(lambda: running(endless) == 1, "Only the new one's request runs.")
    assert not old.is_complete and not old.error and not old.refused, "It says nothing wrong."
    assert method_estimates.job_for(view | {"loss": "fused"}, {"gpu": "T4 16GB"}) is not old
    for job in method_estimates._jobs._entries.values():
        job.asking.cancel()
    until(lambda: running(endless) == 0, "Nothing is left running.")


def test_waiting_gives_the_answer_or_raises_what_was_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "TICK_S", 0.01)
    assert wait("…", lambda: time.sleep(0.1) or 7) == 7

    def refuse() -> None:
        raise LabError("no", "because")

    with pytest.raises(LabError, match="no because"):
        wait("…", refuse)


def test_a_page_that_is_run_anew_gives_up_its_question(
    endless: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rerun(BaseException):
        """As Streamlit's own: raised by a write once a newer run is wanted."""

    def write(text: str) -> None:
        if running(endless) == 1:
            raise Rerun

    shown: Any = SimpleNamespace(caption=write, empty=lambda: None)
    monkeypatch.setattr(waiting.st, "empty", lambda: shown)
    with pytest.raises(Rerun):
        wait("…", lambda: estimate_panel.planner.estimate({}))
    until(lambda: running(endless) == 0, "The question goes on without anybody who waits.")
