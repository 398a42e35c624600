"""Answers that are interrupted: the chat process stays of use, and ends when nobody needs it."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import paths
from lab.atomic_files import read_object
from lab.chat import client
from lab.chat import models as chat_models
from lab.chat.engine.loaded_models import LoadedModels
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions
from tests.conftest import attempt_here

# room for one result, so that another one has to load; idle after four seconds
IMPATIENT = """
from lab.chat import __main__, server
from lab.chat.engine import loaded_models
loaded_models.BUDGET_SHARE, server.IDLE_S = 0.0, 4.0
__main__.main()
"""
LONG = 2000  # tokens: whoever waits for the end of an interrupted answer waits too long


@pytest.fixture
def chat_process(lab_home: Path, trained: list[RunDir]) -> Iterator[subprocess.Popen[bytes]]:
    (lab_home / "chat").mkdir(parents=True, exist_ok=True)
    with (lab_home / "chat" / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", IMPATIENT],
            cwd=paths.ROOT,
            stdout=log,
            stderr=log,
            env=os.environ | {"LAB_HOME": str(lab_home)},
        )
    deadline = time.monotonic() + 60
    while client.record() is None:
        assert time.monotonic() < deadline and child.poll() is None, "the chat process is up"
        time.sleep(0.05)
    yield child
    child.kill()
    child.wait()


class Asked:
    """A question on a plain socket, which can be dropped at any moment."""

    def __init__(self, model: str, tokens: int, *, whole: bool = True) -> None:
        running = client.record()
        assert running is not None, "the chat process runs"
        body = json.dumps(
            {
                "model": model,
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": tokens,
                "stream": True,
            }
        )
        self.socket = socket.create_connection(("127.0.0.1", running["port"]), timeout=30)
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {running['token']}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.socket.sendall((head + (body if whole else body[: len(body) // 2])).encode())

    def read_until(self, word: str) -> None:
        """Until the answer holds `word`, or is at its end."""
        data = b""
        while word.encode() not in data and b"0\r\n\r\n" not in data:
            news = self.socket.recv(4096)
            assert news, f"the answer ended before {word}: {data!r}"
            data += news

    def drop(self, *, reset: bool) -> None:
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def interrupt(moment: str, model: str, reset: bool, chance: random.Random) -> None:
    if moment == "waiting":
        other = Asked(model, LONG)
        other.read_until("answering")
        question = Asked(model, LONG)
        question.read_until("waiting")
        question.drop(reset=reset)
        other.drop(reset=not reset)
        return
    question = Asked(model, 8 if moment == "end" else LONG, whole=moment != "half a question")
    if moment == "loading":
        question.read_until("phase")
    elif moment == "middle":
        question.read_until("answering")
        time.sleep(chance.uniform(0.0, 0.1))  # text of a random model may be long in coming
    elif moment == "end":
        question.read_until('"finish"')
    elif moment == "any":
        time.sleep(chance.uniform(0.0, 0.2))
    question.drop(reset=reset)


def answered(model: str) -> dict[str, Any]:
    *_, last = client.stream(model, [{"role": "user", "content": "Hi"}], max_tokens=4)
    return last


def test_interruptions_at_every_moment_an_answer_and_an_end(
    chat_process: subprocess.Popen[bytes], trained: list[RunDir], tiny_model: Path
) -> None:
    models = [f"base:{tiny_model}", f"run:{trained[1].id}"]
    moments = ["at once", "half a question", "waiting", "loading", "middle", "end", "any"]
    chance = random.Random(5)
    place = 0
    for number in range(21):  # each moment three times: once with a reset
        moment = moments[number % len(moments)]
        if moment == "loading":
            place = 1 - place  # the other one, which is not in memory
        interrupt(moment, models[place], reset=number % 3 == 0, chance=chance)
    began = time.monotonic()
    assert answered(models[0])["finish"] in ("stop", "length")
    assert time.monotonic() - began < 30, "the question did not have to wait for dead ones"
    for file in trained[0].artifact.glob("*.safetensors"):
        file.write_bytes(b"garbage")
    with pytest.raises(LabError):
        answered(f"run:{trained[0].id}")
    assert answered(models[1])["token_ids"], "a load that failed has passed the turn on"
    stream = client.stream(models[1], [{"role": "user", "content": "Hi"}], max_tokens=400)
    while next(stream).get("phase") != "answering":
        pass
    stream.close()
    assert chat_process.wait(timeout=60) == 0, "it counts as idle and ends"


@pytest.mark.parametrize("at", ["", "@8"])
def test_a_resumed_run_answers_with_its_new_weights(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    import torch

    def weights(loaded: chat_models.LoadedModel) -> dict[str, Any]:
        return {name: value.clone() for name, value in loaded.model.state_dict().items()}

    monkeypatch.setattr(actions, "submit", lambda run: None)
    run = trained[1]
    named = chat_models.parse(f"run:{run.id}{at}")
    shelf = LoadedModels()
    before = weights(shelf.get(named))
    assert shelf.get(named) is shelf.get(named) and shelf.holds(named), "loaded once"
    result = read_object(run.result) or {}
    run.result.write_text(json.dumps(result | {"state": "stopped"}))
    for file in (run.checkpoints / "step-8").iterdir():
        file.unlink()
    (run.checkpoints / "step-8").rmdir()
    receipt = run.artifact / "receipt.json"
    content = receipt.read_bytes()
    actions.resume(run, ["train.learning_rate=0.02"])
    assert attempt_here(run) == 0
    if at:  # as long as it trains, the checkpoint is new and the result is still the old one
        receipt.write_bytes(content)
    assert not shelf.holds(named), "a page is told that it loads"
    after, fresh = weights(shelf.get(named)), weights(chat_models.load(named))
    assert all(torch.equal(after[name], fresh[name]) for name in fresh)
    assert any(not torch.equal(after[name], before[name]) for name in before)
