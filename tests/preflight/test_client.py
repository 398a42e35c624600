"""The planner process: asked from anywhere, and asked again when it has died."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.errors import LabError, SpecError
from lab.preflight.client import Planner


@pytest.fixture(scope="module")
def planner() -> Iterator[Planner]:
    planner = Planner()
    yield planner
    planner.close()


def test_problems_come_as_they_are_with_their_fields(
    planner: Planner, make_spec: Callable[..., dict[str, Any]]
) -> None:
    spec = make_spec("lora", train={"batch_size": 0})
    for ask in (
        lambda: planner.check(spec),
        lambda: planner.estimate(spec),
        lambda: planner.plan(spec),
        lambda: planner.limits(spec, {"memory_bytes": 10**9}),
    ):
        with pytest.raises(SpecError) as caught:
            ask()
        (problem,) = caught.value.problems
        assert (problem.field, "is 0" in problem.message) == ("train.batch_size", True)


def test_each_question_brings_its_own_folders(
    planner: Planner, make_spec: Callable[..., dict[str, Any]], tmp_path: Path,
    chats: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    uploads = tmp_path / "other" / "datasets"
    uploads.mkdir(parents=True)
    (uploads / "mine.jsonl").write_bytes(chats.read_bytes())
    spec = make_spec("lora", data={"dataset": "upload:mine.jsonl"})
    with pytest.raises(SpecError, match="no uploaded dataset"):
        planner.check(spec)
    monkeypatch.setenv("LAB_HOME", str(tmp_path / "other"))
    assert planner.check(spec).stats.dataset == "upload:mine.jsonl"
    monkeypatch.chdir(uploads)
    here = planner.check(make_spec("lora", data={"dataset": "./mine.jsonl"}))
    assert here.stats.examples == 24, "Paths are relative to who asks."


def test_errors_keep_their_hint_and_bugs_are_raised(
    planner: Planner, make_spec: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(LabError) as caught:
        planner.look(make_spec() | {"model": "builtin:nothing"}, 10)
    assert caught.value.hint.startswith("Choose one of: builtin:")
    with pytest.raises(RuntimeError, match="KeyError"):
        planner.ask({"ask": "check"})


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_planner_that_is_ended_in_its_warm_up_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """The server is shut down while a page has just asked for a warm planner."""
    raised: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_value))
    # a background process of a shell ignores SIGINT, and so would the planner
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    planner = Planner(module="tests.preflight.server_of_endless_imports")
    warming = threading.Thread(target=planner.warm)
    warming.start()
    while len(planner._requests) < 2 and warming.is_alive():
        time.sleep(0.01)
    if number is None:
        planner.close()
    else:
        assert planner._process is not None
        planner._process.send_signal(number)
    warming.join(30)
    signal.signal(signal.SIGINT, before)
    assert not warming.is_alive() and raised == []
    planner.close()


def test_what_goes_wrong_in_a_warm_up_is_told() -> None:
    broken = Planner(module="tests.preflight.no_such_module")
    with pytest.raises(LabError, match=r"ended before it answered.*No module named"):
        broken.warm()
    broken.close()
    odd = Planner(module="tests.preflight.server")  # knows no such request
    with pytest.raises(RuntimeError, match="KeyError"):
        odd.warm()
    odd.close()


def test_a_planner_that_has_died_is_started_again(planner: Planner) -> None:
    planner.warm()
    first = planner._process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    planner.warm()
    assert planner._process is not None and planner._process.pid != first.pid
