"""OpenAI's own client talks to the chat process; a receipt gives the same tokens again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from lab import cli
from lab.chat import conversations, examples, repeat
from lab.chat.engine.loaded_models import LoadedModels
from lab.chat.server import application, loopback
from lab.errors import LabError
from lab.paths import RunDir

KEY = "a key of more than sixteen characters"
HI: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(lab_home: Path) -> Iterator[openai.OpenAI]:
    listener = loopback()
    app = application(KEY, models=LoadedModels(), ends_when_idle=False)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with openai.OpenAI(api_key=KEY, base_url=url, max_retries=0) as client:
        yield client
    server.should_exit = True
    thread.join(timeout=20)


def test_only_this_machine_reaches_the_chat() -> None:
    with loopback() as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_the_official_client_lists_asks_and_streams(
    client: openai.OpenAI, trained: list[RunDir], tiny_model: Path
) -> None:
    run = f"run:{trained[1].id}"
    assert {run, f"base:{tiny_model}"} <= {model.id for model in client.models.list()}
    ask = {"model": run, "messages": HI, "max_tokens": 5, "temperature": 0.7, "seed": 3}
    whole = client.chat.completions.create(**ask, top_p=0.9)  # type: ignore[call-overload]
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.finish_reason == "length"
    assert whole.usage.completion_tokens == 5, "Tokens count, however few words they are."
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**ask, top_p=0.9, stream=True))  # type: ignore[call-overload]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.strip() == choice.message.content, "Streamed and whole are the same answer."
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == choice.finish_reason
    assert len({chunk.id for chunk in chunks}) == 1
    again = client.chat.completions.create(
        model=run, messages=HI, max_completion_tokens=5, stop="nowhere"
    )
    assert again.usage is not None and again.usage.completion_tokens <= 5


def test_refusals_are_the_clients_own_errors(client: openai.OpenAI, tiny_model: Path) -> None:
    create: Any = client.chat.completions.create
    base = f"base:{tiny_model}"
    with pytest.raises(openai.NotFoundError, match="is not a model"):
        create(model="gpt-4", messages=HI)
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        create(model=base, messages=HI, temperature=-1)
    with pytest.raises(openai.BadRequestError) as refused:
        create(model=base, messages=[{"role": "user", "content": "word " * 3000}])
    assert refused.value.code == "context_length_exceeded"
    wrong = client.with_options(api_key="x" * 20)
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()


@pytest.fixture
def receipt(client: openai.OpenAI, trained: list[RunDir], tmp_path: Path) -> Path:
    """The receipt of a sampled answer."""
    import http.client

    name = f"run:{trained[1].id}"
    chat = conversations.create([name])
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)
    settings = {"temperature": 0.8, "seed": 11, "max_tokens": 6, "top_k": 40}
    body = {"question": "Hi", "models": [name], "settings": settings}
    headers = {"Authorization": f"Bearer {KEY}"}
    connection.request("POST", f"/conversations/{chat.id}/ask", json.dumps(body), headers)
    assert connection.getresponse().status == 200
    connection.close()
    deadline = time.monotonic() + 60
    while not conversations.read(chat.id).turns[0].is_over:
        assert time.monotonic() < deadline, "it answers"
        time.sleep(0.05)
    file = tmp_path / "receipt.json"
    file.write_text(examples.receipt_file(conversations.read(chat.id), 0, name))
    return file


def test_a_receipt_gives_the_same_tokens_again(
    receipt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["chat", "--receipt", str(receipt), "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["is_same"] and reply["differences"] == []
    record = json.loads(receipt.read_text())
    base_weights = record["receipt"].pop("base_weights")
    receipt.write_text(json.dumps(record))
    repetition = repeat.repeat(receipt)
    assert repetition.differences == [], "An older receipt did not name them."
    assert repetition.answer.receipt.base_weights == base_weights
    last = record["token_ids"].pop()
    receipt.write_text(json.dumps(record))
    repetition = repeat.repeat(receipt)
    assert not repetition.is_same and repetition.first_difference == len(record["token_ids"])
    record["token_ids"].append(last)
    record["settings"]["seed"] = 12
    record["receipt"] |= dict.fromkeys(set(repeat.COMPARED) - {"base"}, "another")
    receipt.write_text(json.dumps(record))
    assert cli.main(["chat", "--receipt", str(receipt)]) == 1
    out = capsys.readouterr().out
    assert "Other tokens from number" in out
    for key, words in repeat.COMPARED.items():
        assert (f"Changed since: {words}." in out) == (key != "base"), key
    for words in (
        "the weights of the base", "the weights of the result", "the chat template",
        "the tokens of the prompt", "the precision", "the versions of the libraries",
    ):  # fmt: skip
        assert f"Changed since: {words}." in out, "All that changes an answer is held against it."


@pytest.mark.parametrize(
    "text", ["{}", "[]", "x", '{"token_ids": [1], "receipt": {"model": "gpt-4"}}', '{"receipt": 5}']
)
def test_what_is_no_receipt_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "receipt.json"
    file.write_text(text)
    with pytest.raises(LabError, match="receipt"):
        repeat.repeat(file)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["chat"], "needs models"),
        (["chat", "base:x", "--receipt", "f"], "names its own model"),
        (["serve", "gpt-4"], "is not a model"),
        (["chat", "base:{tiny}", "--prompt", "x", "--top-p", "2"], "--top-p"),
        (["chat", "base:{tiny}", "--prompt", "x", "--stop", ""], "--stop"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    arguments: list[str], says: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([word.format(tiny=tiny_model) for word in arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_short_key_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAB_TOKEN", "short")
    assert cli.main(["serve", f"base:{tiny_model}"]) == 2
    assert "LAB_TOKEN has 5 characters" in capsys.readouterr().err
