"""A download as a phase of a run: stopped and gone on with, damaged weights never train, a token
reaches the worker that needs it and nobody else, no other name is asked for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.atomic_files import read_object, write_json
from lab.hub import credentials
from lab.paths import RunDir
from lab.preflight.client import planner
from lab.runs import actions, hub_access, record_reader, supervisor_start
from lab.runs.status import Status, status
from lab.ui import run_state
from tests.answers import checked
from tests.conftest import attempt_again, attempt_here
from tests.hub.conftest import NAME
from tests.hub.stand_in import StandIn

Spec = Callable[..., dict[str, Any]]
TOKEN = "hf_secretOfATest"
WEIGHTS = "model.safetensors"
GUARD = """
import os, socket
look_up = socket.getaddrinfo
def watched(host, *arguments, **options):
    with open(os.environ["ASKED_NAMES"], "a") as file:
        file.write(f"{host}\\n")
    return look_up(host, *arguments, **options)
socket.getaddrinfo = watched
"""


@pytest.fixture
def asked_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The names that any process of this test looks up, one a line."""
    folder = tmp_path / "guard"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(GUARD)
    names = tmp_path / "names.txt"
    names.touch()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("ASKED_NAMES", str(names))
    planner.close()  # the next question starts it under this guard
    yield names
    planner.close()


@pytest.fixture
def checked_run(stand_in: StandIn, micro_model: Path, hub_spec: Spec) -> RunDir:
    """A run of two steps that was checked and has not begun."""
    stand_in.commit(NAME, micro_model)
    return actions.create_run_dir(checked(hub_spec(train={"max_steps": 2})))


@pytest.mark.parametrize(
    "name", ["dataset", "eval_dataset", "general_dataset", "held_out", "general_set"]
)
def test_a_set_of_the_hub_needs_the_token_too(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run = RunDir(lab_home / "runs" / "20261122-101530-lora-aaaa")
    local = {"model": "builtin:wren-135m", "data": {"dataset": "builtin:persona-chats"}}
    run.path.mkdir(parents=True)
    write_json(run.spec, local)
    assert not hub_access.is_needed(run), "nothing of it is on the Hub"
    write_json(run.spec, local | {"data": local["data"] | {name: "org/set:en@test"}})  # type: ignore[operator]
    assert hub_access.is_needed(run)


def test_what_is_no_message_does_not_keep_a_token_from_its_worker(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_access, "ANSWER_S", 2.0)
    receiver = hub_access.AccessReceiver()
    for sent in (b"[]\n", b"{}\n", b"null\n", b"x\n", b""):
        with socket.socket(socket.AF_UNIX) as connection, hub_access._address() as address:
            connection.connect(address)
            connection.sendall(sent)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run, line = RunDir(lab_home / "runs" / "20261122-101530-lora-aaaa"), credentials.access_line()
    hub_access.hand_over(run)
    monkeypatch.delenv("HF_TOKEN")
    assert receiver.line_for(run) == line != credentials.access_line()
    receiver.close()


def wait_until(is_so: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("command", ["stop", "cancel"])
def test_a_stop_ends_a_download_that_a_resume_goes_on_with(
    stand_in: StandIn, checked_run: RunDir, micro_model: Path, command: str
) -> None:
    run, seen = checked_run, list[Status]()
    size = (micro_model / WEIGHTS).stat().st_size
    stand_in.faults[NAME] = {"rate": size // 4, "file": WEIGHTS}

    def end_it() -> None:
        wait_until(lambda: status(run).phase == "downloading" and status(run).done > size / 4)
        seen.append(status(run))
        (run.commands / command).touch()

    person = threading.Thread(target=end_it)
    person.start()
    attempt_here(run)
    person.join()
    now, ended = seen[0], status(run)
    assert now.state == "starting" and now.unit == "byte" and size <= now.total < 2 * size
    assert "kB/s" in now.note and "files" in now.note, "bytes, files and speed"
    assert run_state.progress(now).startswith("downloading · ") and now.eta_s
    assert run_state.progress(now).endswith(" left")
    state = {"stop": "stopped", "cancel": "cancelled"}[command]
    assert ended.state == state
    assert ended.message.startswith(f"{state.capitalize()} while downloading: ")
    assert f"of '{NAME}' are kept." in ended.message
    assert ended.hint == "Resume it; the download continues from there."
    stand_in.faults.clear()
    stand_in.clear()
    (run.commands / command).unlink()
    attempt_again(run)
    assert status(run).state == "done"
    assert 0 < stand_in.sent(WEIGHTS) < size, "what had come was not sent again"
    fetched = record_reader.last_event(run, "download")
    assert fetched["bytes"] == stand_in.sent(WEIGHTS)


def test_damaged_weights_never_train(
    stand_in: StandIn, checked_run: RunDir, micro_model: Path
) -> None:
    size = (micro_model / WEIGHTS).stat().st_size
    stand_in.faults[NAME] = {"corrupt": size // 2, "file": WEIGHTS}
    attempt_here(checked_run)
    ended = status(checked_run)
    assert ended.state == "failed" and f"{WEIGHTS} arrived damaged twice" in ended.message
    stand_in.faults.clear()
    attempt_again(checked_run)
    assert status(checked_run).state == "done", "the next start works"


def test_without_its_token_a_worker_says_so(stand_in: StandIn, checked_run: RunDir) -> None:
    stand_in.faults[NAME] = {"gated": True, "file": WEIGHTS}
    attempt_here(checked_run)
    ended = status(checked_run)
    assert ended.state == "failed"
    assert "is gated: its files need a token, and none was given" in ended.message


def test_a_token_reaches_the_worker_and_nobody_else(
    stand_in: StandIn, micro_model: Path, hub_spec: Spec, lab_home: Path, asked_names: Path
) -> None:
    stand_in.commit(NAME, micro_model)
    stand_in.faults[NAME] = {"private": True, "tokens": [TOKEN]}
    planner_start = threading.Thread(target=planner.warm)
    planner_start.start()  # beside the supervisor, each imports for seconds
    supervisor_start.ensure()  # by somebody without a token
    wait_until(supervisor_start.is_running)
    planner_start.join()
    credentials.give(TOKEN)
    plan = planner.check(hub_spec(train={"max_steps": 2}))
    stand_in.faults[NAME] |= {"rate": 20_000, "file": WEIGHTS}
    run = actions.create_run_dir(plan)
    actions.submit(run)
    wait_until(lambda: status(run).phase == "downloading")
    records = (read_object(run.process) or {}, read_object(supervisor_start.record_file()) or {})
    assert planner._process is not None
    for pid in (planner._process.pid, *(record["pid"] for record in records)):
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert TOKEN.encode() not in environment + Path(f"/proc/{pid}/cmdline").read_bytes()
    stand_in.faults[NAME].pop("rate")
    assert actions.wait(run, timeout_s=120) == "done"
    assert {line.auth for line in stand_in.requests()} == {TOKEN}
    for file in [*lab_home.rglob("*"), *lab_home.parent.joinpath("hf").rglob("*")]:
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), f"{file} holds it"
    names = set(asked_names.read_text().split())
    assert names <= {"127.0.0.1", "localhost", "None"}, "no name but the one that was given"


def test_no_child_finds_a_token_in_its_environment() -> None:
    secret = dict.fromkeys((*credentials.VARIABLES, credentials.FROM_STDIN), "hf_secret")
    assert credentials.VARIABLES == ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    assert credentials.without_tokens({**secret, "HOME": "/root"}) == {"HOME": "/root"}
