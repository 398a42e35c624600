"""One submission is one run: second clicks, other forms, and servers that die between."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lab.checked_run import CheckedRun
from lab.errors import LabError
from lab.paths import RunDir, all_runs, home
from lab.runs import actions, submissions
from lab.spec import RunSpec


def plan(name: str) -> CheckedRun:
    requested = {"name": name, "method": "lora", "train": {"a": 1, "b": 2}}
    return CheckedRun(RunSpec(name=name), requested)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[RunDir]:
    results: list[RunDir] = []
    monkeypatch.setattr(actions, "submit", results.append)
    return results


def test_a_ticket_knows_its_run_and_its_form(submitted: list[RunDir]) -> None:
    ticket = submissions.new()
    assert submissions.TICKET.fullmatch(ticket) and submissions.new() != ticket
    assert submissions.run_of(ticket) is None and not submissions.is_same(ticket, {})
    run = submissions.start(plan("one"), ticket)
    assert submitted == [run], "It waits in the queue."
    assert submissions.run_of(ticket) == run and submissions.start(plan("one"), ticket) == run
    requested = plan("one").requested
    turned = {key: requested[key] for key in reversed(requested)}
    assert submissions.is_same(ticket, requested) and submissions.is_same(ticket, turned)
    assert not submissions.is_same(ticket, plan("two").requested)
    assert all_runs() == [run]


def test_two_clicks_at_once_are_one_run(
    submitted: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = actions.create_run_dir

    def slowly(made: CheckedRun) -> RunDir:
        time.sleep(0.3)
        return create(made)

    monkeypatch.setattr(actions, "create_run_dir", slowly)
    ticket, results = submissions.new(), []
    threads = [
        threading.Thread(target=lambda: results.append(submissions.start(plan("one"), ticket)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1 and len(all_runs()) == 1


def test_a_start_that_fails_leaves_the_ticket_free(
    submitted: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    create, ticket = actions.create_run_dir, submissions.new()

    def fail(made: dict[str, Any]) -> RunDir:
        raise LabError("The disk is full.")

    monkeypatch.setattr(actions, "create_run_dir", fail)
    with pytest.raises(LabError, match="disk is full"):
        submissions.start(plan("one"), ticket)
    assert not (home() / "tickets" / ticket).exists()
    monkeypatch.setattr(actions, "create_run_dir", create)
    assert submissions.start(plan("one"), ticket) == all_runs()[0]


@pytest.mark.parametrize("ticket", ["", "../../../x", "ABCDEFABCDEF", "a" * 13, "a" * 12 + "\n"])
def test_what_is_no_ticket_starts_nothing(submitted: list[RunDir], ticket: str) -> None:
    with pytest.raises(LabError, match="out of date"):
        submissions.start(plan("one"), ticket)
    assert submissions.run_of(ticket) is None and all_runs() == []


def test_a_file_elsewhere_is_no_ticket(submitted: list[RunDir]) -> None:
    run = submissions.start(plan("one"), submissions.new())
    (home() / "elsewhere").write_text(f"{run.id} hash")
    assert submissions.run_of("../elsewhere") is None


def test_tickets_of_last_week_are_forgotten_and_no_others(submitted: list[RunDir]) -> None:
    old, young = submissions.new(), submissions.new()
    for ticket in (old, young):
        submissions.start(plan(ticket), ticket)
    week = 7 * 24 * 3600
    for ticket, age in ((old, week + 60), (young, week - 60)):
        moment = time.time() - age
        os.utime(home() / "tickets" / ticket, (moment, moment))
    submissions.start(plan("three"), submissions.new())
    assert submissions.run_of(old) is None and submissions.run_of(young) is not None
    assert len(all_runs()) == 3, "The runs stay."


def test_a_server_that_died_between_ticket_and_run(
    submitted: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = submissions.new()
    file: Path = home() / "tickets" / ticket
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert submissions.start(plan("one"), ticket) == all_runs()[0]
