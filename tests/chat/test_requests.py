"""The chat process refuses strangers and nonsense, each in the words of OpenAI's errors."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import stat
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from lab import process
from lab.atomic_files import read_object, write_json
from lab.chat import client, completions, requests, server
from lab.chat.engine.loaded_models import LoadedModels
from lab.errors import LabError
from tests.conftest import SHARED_MODELS

MODEL = "base:builtin:smollm2-135m-instruct"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def chat_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose chat process runs, left by a killed one with a file that all may read."""
    home = tmp_path_factory.mktemp("chat") / "home"
    (home / "chat").mkdir(parents=True)
    left = home / "chat" / ".process.json.tmp"
    left.touch()
    left.chmod(0o644)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_HOME", str(home))
        patch.setenv("LAB_MODELS", str(SHARED_MODELS))
        record = client.ensure()
    yield home
    process.send(record, signal.SIGKILL)


def request(
    home: Path, method: str, path: str, body: bytes | None = None, token: str | None = None
) -> tuple[int, Any]:
    record = read_object(home / "chat" / "process.json") or {}
    connection = http.client.HTTPConnection("127.0.0.1", record["port"], timeout=60)
    given = record["token"] if token is None else token
    headers = {"Authorization": f"Bearer {given}"} if given else {}
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    text = reply.read()
    return reply.status, json.loads(text) if text.startswith(b"{") else text.decode()


def test_the_token_is_nobody_elses(chat_home: Path) -> None:
    file = chat_home / "chat" / "process.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600, "other users could read the token"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/conversations/20260101-000000-abcd"),
        ("POST", "/unload"),
        ("POST", "/shutdown"),
        ("POST", "/conversations/20260101-000000-abcd/ask"),
        ("GET", "/nothing"),
    ],
)
@pytest.mark.parametrize("token", ["", "x", "Bearer", "é"])
def test_without_the_token_nothing_is_answered(
    chat_home: Path, method: str, path: str, token: str
) -> None:
    body = json.dumps({"model": MODEL, "messages": HI}).encode()
    status, reply = request(chat_home, method, path, body, token)
    assert status == 401 and "loaded" not in reply
    assert request(chat_home, "GET", "/health")[0] == 200, "it still runs, and knows its owner"


def test_a_page_hears_what_the_process_holds(
    chat_home: Path, lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.health() is None, "Of another home, where no chat process runs."
    monkeypatch.setenv("LAB_HOME", str(chat_home))
    health = client.health()
    assert health is not None and health.loaded == () and not health.is_busy
    assert health.ends_in_s is not None and health.ends_in_s > 0, "It would end by itself."
    keys = ["ok", "loaded", "bytes", "is_busy", "ends_in_s"]
    assert list(request(chat_home, "GET", "/health")[1]) == keys


DEEP = 5000


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"", 400, "body"),
        (b"{", 400, "body"),
        (b"\xff\xfe", 400, "body"),
        (b"[" * DEEP + b"]" * DEEP, 400, "body"),
        (b'{"seed": ' + b"9" * DEEP + b"}", 400, "body"),
        (b'{"seed": 1, "seed": 2}', 400, "body"),
        (b"[]", 400, "body"),
        (b'"hello"', 400, "body"),
        (b"null", 400, "body"),
        (b" " * 5_000_000, 413, "body"),
    ],
)
def test_bodies_that_are_no_request(chat_home: Path, body: bytes, status: int, param: str) -> None:
    found, reply = request(chat_home, "POST", "/v1/chat/completions", body)
    assert (found, reply["error"]["param"]) == (status, param)
    assert reply["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in str(reply) and "Error" not in reply["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"), ({"model": 5}, "model"), ({"model": "x" * 5000}, "model"),
        ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"), ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": float("nan")}, "temperature"), ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"), ({"temperature": "hot"}, "temperature"),
        ({"seed": -1}, "seed"), ({"seed": 2**64}, "seed"), ({"seed": 10**400}, "seed"),
        ({"system_prompt": ["x"]}, "system_prompt"),
        ({"system_prompt": "x" * 50_000}, "system_prompt"),
        ({"system_prompt": "\ud800"}, "system_prompt"),
        ({"stream": "yes"}, "stream"), ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"), ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stop": [""]}, "stop"), ({"stop": ["x"] * 9}, "stop"), ({"stop": 5}, "stop"),
        ({"n": 2}, "n"), ({"": 1}, ""),
        ({"messages": None}, "messages"), ({"messages": {}}, "messages"),
        ({"messages": []}, "messages"), ({"messages": "Hi"}, "messages"),
        ({"messages": HI * 1001}, "messages"),
        ({"messages": [5]}, "messages[0]"), ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{**HI[0], "name": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "root", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [*HI, {"role": "system", "content": "x"}, *HI]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x" * 300_000}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages[0]"),
        ({"messages": [*HI, {"role": "assistant", "content": "Hi"}]}, "messages[1]"),
    ],
)  # fmt: skip
def test_fields_out_of_their_bounds(chat_home: Path, change: dict[str, Any], param: str) -> None:
    body = json.dumps({"model": MODEL, "messages": HI, **change}).encode()
    status, reply = request(chat_home, "POST", "/v1/chat/completions", body)
    assert (status, reply["error"]["param"]) == (422, param), reply


def test_all_problems_of_a_request_at_once(chat_home: Path) -> None:
    body = json.dumps({"model": MODEL, "seed": -1, "max_tokens": 0, "messages": [1, 2]}).encode()
    _, reply = request(chat_home, "POST", "/v1/chat/completions", body)
    fields = [problem["field"] for problem in reply["error"]["problems"]]
    assert fields == ["seed", "max_tokens", "messages[0]", "messages[1]"]
    assert "it must be at least 1 and at most 32,768" in reply["error"]["message"]


@pytest.mark.parametrize("model", ["nobody", "run:../../etc", "base:builtin:gpt5", "run:x@y"])
def test_models_that_are_not_there(chat_home: Path, model: str) -> None:
    body = json.dumps({"model": model, "messages": HI}).encode()
    status, reply = request(chat_home, "POST", "/v1/chat/completions", body)
    assert (status, reply["error"]["code"]) == (404, "model_not_found")


def test_a_page_reads_why_its_question_is_refused(
    chat_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_HOME", str(chat_home))
    with pytest.raises(LabError, match="seed: is -1; it must be at least 0"):
        list(client.stream(MODEL, HI, seed=-1))


def test_null_means_the_default_and_bounds_themselves_are_allowed() -> None:
    from lab.chat import requests

    body = {"model": MODEL, "messages": HI, "seed": None, "max_tokens": 32_768, "stream": True}
    records = requests.read(json.dumps(body | {"temperature": 10}).encode())
    assert records == {
        "model": MODEL, "messages": HI, "seed": 0, "max_tokens": 32_768, "temperature": 10.0,
        "system_prompt": "", "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "stop": None,
        "stream": True,
    }  # fmt: skip


def test_the_newer_name_of_the_length_gives_way_to_the_older() -> None:
    from lab.chat import requests

    body = {"model": MODEL, "messages": HI, "max_completion_tokens": 5}
    assert requests.read_request(body)["max_tokens"] == 5
    assert requests.read_request(body | {"max_tokens": 9})["max_tokens"] == 9


def test_a_body_without_an_end_is_not_kept() -> None:
    blocks: list[bytes] = []

    async def endless() -> AsyncIterator[bytes]:
        while len(blocks) < 100:
            blocks.append(b" " * 1_000_000)
            yield blocks[-1]

    coming: Any = SimpleNamespace(stream=endless)
    with pytest.raises(requests.Refused) as refused:
        # in a thread of its own: browsers of other tests leave a loop running in this one
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, server.read_body(coming)).result()
    assert refused.value.status == 413 and len(blocks) == 1 + requests.MAX_BODY_BYTES // 1_000_000


def asgi(app: Any, path: str, *headers: tuple[str, str]) -> None:
    """One request to `app`, whose reply is dropped."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        pass

    encoded = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": "GET", "path": path, "headers": encoded}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, app(scope, receive, send)).result()


def test_a_token_for_the_hub_is_taken_from_the_owner_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adopted: list[str] = []
    monkeypatch.setattr(server.credentials, "adopt_header", adopted.append)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        pass

    gate = server.TokenGate(answer, "the key")
    for shown in ("another", "", "the key"):
        access = (server.credentials.HEADER.lower(), f"of {shown}")
        asgi(gate, "/health", ("authorization", f"Bearer {shown}"), access)
    assert adopted == ["of the key"]


def test_memory_is_freed_between_answers_and_never_in_one() -> None:
    models = LoadedModels()
    app = server.application("the key", models=models, ends_when_idle=False)
    with TestClient(app, headers={"Authorization": "Bearer the key"}) as page:
        with models.turn:
            reply = page.post("/unload")
            assert reply.status_code == 409 and "Stop it first" in reply.text
        for _ in range(2):
            assert page.post("/unload").status_code == 200
        assert not models.turn.locked(), "the next question gets its turn"


@pytest.mark.parametrize("last", ["a question in the line", "an answer", "a look at a length"])
def test_a_process_at_work_does_not_end_however_long_it_takes(
    last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, models = threading.Event(), LoadedModels()
    board: Any = SimpleNamespace(is_busy=lambda: last == "a question in the line")
    monkeypatch.setattr(server, "IDLE_S", 0.02)
    monkeypatch.setattr(server.os, "_exit", lambda code: ended.set())
    locks = {"an answer": models.turn, "a look at a length": models.measuring}
    with locks.get(last, contextlib.nullcontext()):
        server._end_when_idle(models, board)
        assert not ended.wait(0.3), "it is of use"
        last = ""
    assert ended.wait(20), "then it ends"


def test_an_answer_that_is_not_streamed_ends_when_its_client_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    was_told: list[bool] = []

    def events(models: Any, body: Any, gone: threading.Event) -> Iterator[dict[str, Any]]:
        was_told.append(gone.wait(5))
        receipt = {"prompt_tokens": 1}
        yield {"answer": {"text": "", "finish": "stopped", "token_ids": [], "receipt": receipt}}

    async def is_disconnected() -> bool:
        return True

    monkeypatch.setattr(completions, "_events", events)
    monkeypatch.setattr(completions, "QUIET_S", 0.05)
    client_is_gone: Any = SimpleNamespace(is_disconnected=is_disconnected)
    answer = completions.complete(LoadedModels(), {"model": MODEL}, client_is_gone)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, answer).result()
    assert was_told == [True], "nobody reads the rest"


def test_two_pages_at_once_start_one_process(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def start() -> dict[str, Any]:
        started.append(1)
        time.sleep(0.3)  # as long as it takes to come up
        record = (process.identity(os.getpid()) or {}) | {"port": 1, "token": "x"}
        write_json(client.folder() / "process.json", record)
        return record

    monkeypatch.setattr(client, "_start", start)
    with ThreadPoolExecutor(2) as pages:
        ports = [reply.result()["port"] for reply in [pages.submit(client.ensure) for _ in "ab"]]
    assert ports == [1, 1] and started == [1]
