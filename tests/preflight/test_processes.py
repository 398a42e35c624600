"""Requests beside each other: none holds, starves, or is taken for another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab.errors import LabError
from lab.paths import ROOT
from lab.preflight import pool
from lab.preflight.client import Abandoned, Asking, Planner
from lab.stages import Limits

MB = 1_000_000
PATIENCE_S = 60.0  # of a test; nothing below is as slow on an idle machine


@pytest.fixture
def make() -> Iterator[Callable[..., Planner]]:
    """`make(seconds=1)`: a planner whose requests do what they say, with these limits."""
    planners: list[Planner] = []

    def begin(module: str = "tests.preflight.server", **limits: Any) -> Planner:
        planners.append(Planner(Limits(**limits), module))
        return planners[-1]

    yield begin
    for planner in planners:
        planner.close()


def echo(planner: Planner, value: Any, **more: Any) -> dict[str, Any]:
    return planner.ask({"ask": "echo", "value": value, **more})


def until(holds: Callable[[], bool], message: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, message
        time.sleep(0.02)


def children(planner: Planner) -> list[psutil.Process]:
    assert planner._process is not None
    result: list[psutil.Process] = psutil.Process(planner._process.pid).children()
    return [row for row in result if row.status() != psutil.STATUS_ZOMBIE]


def test_requests_that_wait_for_the_hub_hold_no_other(make: Callable[..., Planner]) -> None:
    planner = make()
    echo(planner, 0)
    slow = [
        planner.begin({"ask": "echo", "value": 1, "seconds": 60, "stage": "hub"})
        for _ in range(pool.AT_ONCE + 2)
    ]
    until(lambda: len(children(planner)) > pool.AT_ONCE, "all of them wait beside each other")
    assert echo(planner, 2)["value"] == 2, "and another page is answered"
    assert not any(request._is_answered.is_set() for request in slow)
    for request in slow:
        request.cancel()


def test_a_request_that_spins_ends_at_its_limit_and_holds_no_other(
    make: Callable[..., Planner],
) -> None:
    planner = make(seconds=3)
    spinning = planner.begin({"ask": "spin"})
    for number in range(5):
        assert echo(planner, number)["value"] == number, "Others are answered meanwhile."
    assert not spinning._is_answered.is_set(), "They did not wait for the one that spins."
    with pytest.raises(LabError, match="Answering took longer than 3 s and was ended") as caught:
        spinning.answer(PATIENCE_S)
    assert caught.value.hint, "The message says what to do."
    assert echo(planner, "after")["value"] == "after"


@pytest.mark.parametrize(
    ("stage", "words", "advice"),
    [
        ("rows", "Reading the rows", "stray quote"),
        ("template", "Rendering the chat template", "data.template"),
        ("tokenizer", "Loading the tokenizer", "tokenizer's files"),
        ("model", "Building the model", "config.json"),
        ("method", "Matching the method", "in place of a pattern"),
    ],
)
def test_the_part_that_took_too_long_is_named(
    make: Callable[..., Planner], stage: str, words: str, advice: str
) -> None:
    planner = make(seconds=60, part_seconds=0.3)
    with pytest.raises(LabError, match=f"{words}.* took longer than 0.3 s") as caught:
        planner.ask({"ask": "spin", "stage": stage}, PATIENCE_S)
    assert advice in caught.value.hint


def test_a_part_that_is_our_own_has_the_time_of_the_whole(make: Callable[..., Planner]) -> None:
    planner = make(seconds=60, part_seconds=0.1)
    assert echo(planner, 1, seconds=0.4, stage="predict")["value"] == 1
    planner.limits_of_requests = Limits(seconds=0.3, part_seconds=60)
    with pytest.raises(LabError, match=r"Predicting memory and time took longer than 0\.3 s"):
        planner.ask({"ask": "spin", "stage": "predict"}, PATIENCE_S)


def test_what_takes_too_much_memory_ends_alone(make: Callable[..., Planner]) -> None:
    planner = make(memory_bytes=200 * MB)
    beside = planner.begin({"ask": "echo", "value": "beside", "seconds": 1.5})
    hungry = {"ask": "allocate", "bytes": 600 * MB, "seconds": 60, "stage": "template"}
    message = "Rendering the chat template took more than 200.00 MB of memory and was ended"
    with pytest.raises(LabError, match=message):
        planner.ask(hungry, PATIENCE_S)
    assert beside.answer(PATIENCE_S)["value"] == "beside"
    assert planner.ask({"ask": "allocate", "bytes": 20 * MB})["pid"], "A little is no reason."


def test_requests_take_half_of_the_memory_together_and_the_largest_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None of them has too much for itself."""
    grown, ended = {1: 200 * MB, 2: 300 * MB}, []
    processes = pool.Pool(lambda reply: None)
    processes._memory_bytes = 1000 * MB
    for pid in grown:
        job = pool.Job(pid, "{}", reads=False, seconds=9, part_seconds=9, memory_bytes=900 * MB)
        processes._processes.append(pool.Process(pid, 0, 0, reads=False, job=job))
    monkeypatch.setattr(pool, "memory_of", grown.__getitem__)
    monkeypatch.setattr(processes, "_refuse", lambda process, *words: ended.append(process.pid))
    processes._share_memory()
    assert ended == [], "Half is what they may take."
    grown[1] += 1
    processes._share_memory()
    assert ended == [2]


def test_more_memory_than_there_is_is_an_error(make: Callable[..., Planner]) -> None:
    with pytest.raises(LabError, match="more memory than there is"):
        make().ask({"ask": "allocate", "bytes": 1 << 60, "stage": "rows"}, PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT, 0])
def test_a_process_that_dies_is_an_error_and_the_next_request_works(
    make: Callable[..., Planner], number: int
) -> None:
    planner = make()
    beside = planner.begin({"ask": "echo", "value": "beside", "seconds": 0.5})
    ask = {"ask": "die", "signal": int(number)} if number else {"ask": "leave"}
    how = signal.Signals(number).name if number else "exit code 3"
    with pytest.raises(LabError, match=rf"process ended \({how}\) while"):
        planner.ask(ask, PATIENCE_S)
    assert beside.answer(PATIENCE_S)["value"] == "beside"
    assert echo(planner, "after")["value"] == "after"


def test_a_reply_goes_to_the_request_of_its_id_alone(make: Callable[..., Planner]) -> None:
    planner = make("tests.preflight.late")
    answers = [planner.ask({"ask": "echo", "value": number}, 20) for number in range(4)]
    assert [answer["value"] for answer in answers] == list(range(4))
    assert not planner._requests


def test_many_at_once_get_their_own_answers(make: Callable[..., Planner]) -> None:
    planner = make()
    begun = [planner.begin({"ask": "echo", "value": number}) for number in range(40)]
    assert [process.answer(PATIENCE_S)["value"] for process in begun] == list(range(40))


def test_four_run_at_once_and_the_others_wait(make: Callable[..., Planner]) -> None:
    planner = make(seconds=600)
    for _ in range(8):
        planner._begin({"ask": "spin"}, reads=False)
    until(lambda: len(children(planner)) >= 4, "Four run.")
    time.sleep(0.3)
    assert len(children(planner)) == 4, "The machine's memory is not for any number of them."


def test_a_request_that_is_given_up_frees_its_process(make: Callable[..., Planner]) -> None:
    planner = make(seconds=600)
    for kind in ("spin", "deaf"):
        begun = planner.begin({"ask": kind})
        until(lambda: len(children(planner)) == 1, "The request is running.")
        begun.cancel()
        until(lambda: not children(planner), f"'{kind}' goes on after it was given up.")
        with pytest.raises(Abandoned):
            begun.answer(1)
    assert echo(planner, "after")["value"] == "after"


def test_a_waiting_request_can_be_given_up_too(make: Callable[..., Planner]) -> None:
    planner = make(seconds=600)
    running = [planner.begin({"ask": "spin"}) for _ in range(pool.READING_AT_ONCE)]
    waiting = planner.begin({"ask": "spin"})
    last = planner.begin({"ask": "echo", "value": "last"})
    waiting.cancel()
    running[0].cancel()
    assert last.answer(PATIENCE_S)["value"] == "last", "It took the free process."
    with pytest.raises(Abandoned):
        waiting.answer(1)


def test_one_wait_too_long_gives_up_its_own_request_only(make: Callable[..., Planner]) -> None:
    planner = make(seconds=600)
    beside = planner.begin({"ask": "echo", "value": "beside", "seconds": 0.5})
    with pytest.raises(LabError, match=r"did not answer within 0\.2 s"):
        planner.ask({"ask": "spin"}, 0.2)
    assert beside.answer(PATIENCE_S)["value"] == "beside"
    until(lambda: len(children(planner)) <= 1, "The one that spins was not ended.")


def test_what_a_page_asks_ends_when_it_no_longer_wants_to_know(
    make: Callable[..., Planner],
) -> None:
    planner, asking = make(seconds=600), Asking()
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            with asking.active():
                planner.ask({"ask": "spin"})
        except LabError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: bool(planner._process) and len(children(planner)) == 1, "It is running.")
    asking.cancel()
    thread.join(PATIENCE_S)
    assert isinstance(raised[0], Abandoned)
    until(lambda: not children(planner), "Its process goes on.")
    with asking.active(), pytest.raises(Abandoned):
        echo(planner, "later")
    assert echo(planner, "of another page")["value"] == "of another page"


@pytest.mark.parametrize(
    ("request_", "reads", "is_long"),
    [
        ({"ask": "estimate", "spec": {"model": "config:x"}}, False, False),
        ({"ask": "estimate", "spec": {"model": "config:x"}, "how": {"time": True}}, True, False),
        ({"ask": "estimate", "spec": {"model": "config:x"}, "how": {"whole": True}}, False, True),
        ({"ask": "limits", "spec": {"model": "builtin:x"}}, False, True),
        ({"ask": "plan", "spec": {"model": "org/x"}}, True, True),
        (
            {
                "ask": "estimate",
                "spec": {"model": "config:x", "method": {"target_modules": "re:(a*)*"}},
            },
            True,
            False,
        ),
        ({"ask": "check", "spec": {"model": "config:x"}}, True, False),
        ({"ask": "look", "spec": {}}, True, False),
        ({"ask": "fixes", "spec": {}}, True, True),
    ],
)
def test_what_reads_files_of_others_and_what_may_take_longer(
    monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any], reads: bool, is_long: bool
) -> None:
    planner, sent = Planner(Limits(seconds=7.0, part_seconds=3.0, memory_bytes=9)), []
    monkeypatch.setattr(planner, "_running", lambda: None)
    monkeypatch.setattr(planner, "_write", sent.append)
    planner.begin(request_)
    (message,) = sent
    assert message["reads"] is reads and message["seconds"] == (35.0 if is_long else 7.0)
    assert (message["part_seconds"], message["memory_bytes"]) == (3.0, 9)


def test_rows_and_templates_never_take_the_last_process(make: Callable[..., Planner]) -> None:
    planner = make(seconds=600)
    for _ in range(pool.AT_ONCE + 2):
        planner.begin({"ask": "spin"})
    begun = planner._begin({"ask": "echo", "value": "a shipped config"}, reads=False)
    assert begun.answer(PATIENCE_S)["value"] == "a shipped config"


def test_twenty_hostile_requests_in_a_row_leave_a_planner_that_answers(
    make: Callable[..., Planner],
) -> None:
    planner = make(seconds=0.2, part_seconds=0.1, memory_bytes=100 * MB)
    hostile: list[dict[str, Any]] = [
        {"ask": "spin"},
        {"ask": "spin", "stage": "template"},
        {"ask": "allocate", "bytes": 300 * MB, "seconds": 60},
        {"ask": "die", "signal": int(signal.SIGSEGV)},
        {"ask": "deaf"},
    ]
    echo(planner, "before")
    process = planner._process
    for number in range(20):
        with pytest.raises(LabError):
            planner.ask(hostile[number % len(hostile)], PATIENCE_S)
    planner.limits_of_requests = Limits()
    assert echo(planner, "after")["value"] == "after"
    assert planner._process is process, "The same planner has outlived them all."
    until(lambda: len(children(planner)) <= pool.IDLE, "What was ended is gone.")


def test_a_process_is_kept_for_what_it_has_learned_unless_it_has_grown(
    make: Callable[..., Planner], monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = make()
    first = echo(planner, 1)["pid"]
    assert echo(planner, 2)["pid"] == first, "What is in its memory answers the next question."
    grown = planner.ask({"ask": "allocate", "bytes": pool.GROWN_BYTES + 50 * MB}, PATIENCE_S)
    assert grown["pid"] == first
    assert echo(planner, 3)["pid"] != first, "Its memory is given back."


def test_bugs_bring_their_traceback_and_errors_their_hint(make: Callable[..., Planner]) -> None:
    planner = make()
    with pytest.raises(RuntimeError, match=r"KeyError(.|\n)*tests/preflight/server\.py"):
        planner.ask({"ask": "bug"})
    with pytest.raises(LabError) as caught:
        planner.ask({"ask": "refuse"})
    assert (caught.value.message, caught.value.hint) == ("unknown", "hint")


def test_what_libraries_print_is_no_answer(make: Callable[..., Planner]) -> None:
    assert make().ask({"ask": "chatter"}) == {"value": "said"}


def test_a_request_that_cannot_be_written_is_an_error(make: Callable[..., Planner]) -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    planner = make()
    with pytest.raises(LabError, match="cannot be sent"):
        echo(planner, deep)
    nested: Any = 1
    for _ in range(900):
        nested = [nested]
    assert echo(planner, nested)["value"] == nested
    assert echo(planner, "a" * 3 * MB)["value"] == "a" * 3 * MB, "Long ones are passed on."


def test_a_planner_that_cannot_start_says_why(make: Callable[..., Planner]) -> None:
    with pytest.raises(LabError, match=r"ended before it answered.*No module named"):
        echo(make("tests.preflight.nothing"), 1)


def test_close_ends_everything_and_tells_who_waits(make: Callable[..., Planner]) -> None:
    planner = make(seconds=600)
    begun = planner.begin({"ask": "deaf"})
    until(lambda: len(children(planner)) == 1, "It is running.")
    (child,) = children(planner)
    planner.close()
    with pytest.raises(LabError, match="was ended"):
        begun.answer(1)
    until(lambda: not _lives(child), "Its process lives on.")
    assert echo(planner, "again")["value"] == "again"


@pytest.mark.parametrize("killed", ["asker", "planner"])
def test_nothing_is_left_of_a_planner_whose_asker_was_killed(killed: str, tmp_path: Path) -> None:
    script = (
        "import time; from lab.preflight.client import Planner\n"
        "planner = Planner(module='tests.preflight.server')\n"
        "planner.begin({'ask': 'deaf'}); planner.begin({'ask': 'spin'})\n"
        "planner.ask({'ask': 'echo', 'value': 1}); print(planner._process.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        planner = psutil.Process(int(process.stdout.readline()))
        until(lambda: len(planner.children()) >= 2, "Both requests run.")
        everything = [planner, *planner.children()]
        os.kill(process.pid if killed == "asker" else planner.pid, signal.SIGKILL)
        try:
            until(lambda: not any(map(_lives, everything)), "Processes outlive who asked.")
        finally:
            process.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
