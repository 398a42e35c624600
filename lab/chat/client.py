"""Talk to the chat process from a page or a program; start it when it is not there."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import signal
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import dataclass_json, paths, process
from lab.atomic_files import part, read_object
from lab.chat import conversations
from lab.chat.conversations import Chat
from lab.errors import LabError
from lab.hub import credentials

START_S = 60.0


def folder() -> Path:
    return paths.home() / "chat"


def record() -> dict[str, Any] | None:
    """The live chat process of this home, or None."""
    running = read_object(folder() / "process.json")
    return running if running and process.is_alive(running) and "port" in running else None


def ensure() -> dict[str, Any]:
    """The chat process, started if there is none. Raises LabError if it does not come up."""
    running = record()
    if running is not None:
        return running
    paths.make_folder(folder())
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two pages at once start one process
        return record() or _start()


def _start() -> dict[str, Any]:
    log = folder() / "log.txt"
    child = process.spawn(["lab.chat"], log, access=credentials.access_line())
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        running = record()
        if running is not None and running["pid"] == child.pid:
            return running
        if child.poll() is not None:
            raise LabError("The chat process ended while it was starting.", f"See {log}.")
        time.sleep(0.1)
    raise LabError(f"The chat process did not start within {START_S:.0f} s.", f"See {log}.")


@dataclass(frozen=True)
class ChatHealth:
    """What the chat process holds: the names of its models, and the bytes of each, which are empty
    while it answers. `ends_in_s`: seconds to its end, if nobody asks; None where it stays."""

    loaded: tuple[str, ...] = ()
    bytes: Mapping[str, int] = field(default_factory=dict)
    is_busy: bool = False
    ends_in_s: float | None = None


def health() -> ChatHealth | None:
    """None if no chat process runs."""
    running = record()
    if running is None:
        return None
    try:
        return dataclass_json.read(ChatHealth, _reply(running, "GET", "/health"))
    except LabError:
        return None


def view(conversation_id: str) -> Chat:
    """The conversation, with what is answered at this moment. Without a chat process, answers that
    were on their way are interrupted. Raises LabError."""
    running = record()
    if running is not None:
        with contextlib.suppress(ChatProcessGone):
            return Chat.from_json(_reply(running, "GET", f"/conversations/{conversation_id}"))
    conversation = conversations.read(conversation_id)
    conversation.interrupt()
    return conversation


def ask(conversation_id: str, question: str, models: list[str], settings: dict[str, Any]) -> int:
    """Begin a turn; its number. Answers are seen by `view`. Raises LabError."""
    body = {"question": question, "models": models, "settings": settings}
    path = f"/conversations/{conversation_id}/ask"
    return int(_reply(ensure(), "POST", path, body)["turn"])


def answer_again(conversation_id: str, models: list[str] | None = None) -> int:
    """Answer the last turn anew, by default with all its models. Raises LabError."""
    path = f"/conversations/{conversation_id}/again"
    return int(_reply(ensure(), "POST", path, {"models": models})["turn"])


def stop(conversation_id: str, models: list[str] | None = None) -> int:
    """Stop the answers of a conversation, by default all; how many were stopped."""
    running = record()
    if running is None:
        return 0
    path = f"/conversations/{conversation_id}/stop"
    return int(_reply(running, "POST", path, {"models": models})["stopped"])


def score(conversation_id: str, turn: int, model: str) -> dict[str, list[float]]:
    """What each model of a turn gives the tokens of `model`'s answer. Raises LabError."""
    path = f"/conversations/{conversation_id}/score"
    reply = _reply(ensure(), "POST", path, {"turn": turn, "model": model})
    return dict(reply["scores"])


def unload() -> None:
    """Free the memory of all models. Raises LabError while an answer is made."""
    running = record()
    if running is not None:
        _reply(running, "POST", "/unload", {})


def _reply(
    running: dict[str, Any], method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Raises ChatProcessGone where nobody answers, LabError for a refusal."""
    try:
        with contextlib.closing(_connect(running)) as connection:
            response = _send(connection, running, method, path, body)
            if response.status != 200:
                raise LabError(_refusal(response))
            reply: dict[str, Any] = json.loads(response.read())
            return reply
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ChatProcessGone(error) from None


class ChatProcessGone(LabError):
    """The process ended while it was asked."""

    def __init__(self, error: Exception) -> None:
        super().__init__(
            f"The chat process is gone ({type(error).__name__}).",
            "Ask again; it is restarted. If this repeats, the machine may lack memory.",
        )


def stream(
    model: str, messages: list[dict[str, str]], **settings: Any
) -> Generator[dict[str, Any]]:
    """Events of one answer: {"phase"}, {"delta"} of text, and at the end the whole answer.

    Closing it ends the answer: whoever stops listening closes it, and does not wait until it is
    collected. While there is no news the phase comes again each second, so that a page can notice
    that it is closed. Raises LabError for problems the user can fix.
    """
    body = {"model": model, "messages": messages, "stream": True, **settings}
    phase = "waiting"
    closing = contextlib.ExitStack()
    try:
        connection = closing.enter_context(contextlib.closing(_connect(running := ensure())))
        response = _send(connection, running, "POST", "/v1/chat/completions", body)
        closing.enter_context(response)
        if response.status != 200:
            raise LabError(_refusal(response))
        for raw in response:
            line = raw.decode().rstrip("\n")
            if line.startswith(":"):
                phase = line.removeprefix(": phase ") if line.startswith(": phase ") else phase
                yield {"phase": phase}
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise LabError(event["error"]["message"], event["error"].get("hint") or "")
            yield event.get("answer") or {"delta": event["choices"][0]["delta"]["content"]}
    except (OSError, http.client.HTTPException) as error:
        raise ChatProcessGone(error) from None
    finally:
        closing.close()


def _refusal(response: http.client.HTTPResponse) -> str:
    """What the chat process says of a request that it does not answer."""
    try:
        reply = json.loads(response.read())
    except ValueError:
        reply = None
    message = part(reply, "error").get("message")
    return f"The chat process refused the question: {message or f'status {response.status}'}"


def end() -> bool:
    """End the chat process, so that its memory returns; False if there was none."""
    running = record()
    if running is None:
        return False
    process.send(running, signal.SIGTERM)
    for _ in range(50):
        if not process.is_alive(running):
            return True
        time.sleep(0.1)
    process.send(running, signal.SIGKILL)
    return True


def _connect(running: dict[str, Any]) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", running["port"], timeout=600)


def _send(
    connection: http.client.HTTPConnection,
    running: dict[str, Any],
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
) -> http.client.HTTPResponse:
    headers = {
        "Authorization": f"Bearer {running['token']}",
        "Content-Type": "application/json",
    }
    headers |= credentials.access_header()  # a base may have to be fetched
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    return connection.getresponse()
