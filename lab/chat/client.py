"""Talk to the chat process from a page or a program; start it when it is not there."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import http.client
import json
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from lab import paths
from lab.atomic_files import part, read_object
from lab.errors import LabError
from lab.hub import credentials
from lab.runs import process

START_S = 60.0


def folder() -> Path:
    return paths.home() / "chat"


def record() -> dict[str, Any] | None:
    """The live chat process of this home, or None."""
    found = read_object(folder() / "process.json")
    return found if found and process.is_alive(found) and "port" in found else None


def ensure() -> dict[str, Any]:
    """The chat process, started if there is none. Raises LabError if it does not come up."""
    found = record()
    if found is not None:
        return found
    paths.make_folder(folder())
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two pages at once start one process
        return record() or _start()


def _start() -> dict[str, Any]:
    log = folder() / "log.txt"
    child = process.spawn(["lab.chat"], log, access=credentials.access_line())
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        found = record()
        if found is not None and found["pid"] == child.pid:
            return found
        if child.poll() is not None:
            raise LabError("The chat process ended while it was starting.", f"See {log}.")
        time.sleep(0.1)
    raise LabError(f"The chat process did not start within {START_S:.0f} s.", f"See {log}.")


def loaded() -> list[str]:
    """The models in memory; empty if no chat process runs."""
    found = record()
    if found is None:
        return []
    try:
        with contextlib.closing(_connect(found)) as connection:
            names: list[str] = json.loads(_ask(connection, found, "GET", "/health").read())[
                "loaded"
            ]
        return names
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return []


def stream(
    model: str, messages: list[dict[str, str]], **settings: Any
) -> Generator[dict[str, Any]]:
    """Events of one answer: {"phase"}, {"delta"} of text, and at the end {"finish", "receipt"}.

    Closing it ends the answer: whoever stops listening closes it, and does not wait until it is
    collected. While there is no news the phase comes again each second, so that a page can notice
    that it is closed. Raises LabError for problems the user can fix.
    """
    body = {"model": model, "messages": messages, **settings}
    phase = "waiting"
    closing = contextlib.ExitStack()
    try:
        connection = closing.enter_context(contextlib.closing(_connect(running := ensure())))
        response = _ask(connection, running, "POST", "/v1/chat/completions", body)
        closing.enter_context(response)
        if response.status != 200:
            raise LabError(_refusal(response))
        for raw in response:
            line = raw.decode()
            if line.startswith(":"):
                yield {"phase": phase}
            if not line.startswith("data: "):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise LabError(event["error"], event.get("hint", ""))
            phase = event.get("phase", phase)
            if "choices" in event:
                event = {"delta": event["choices"][0]["delta"]["content"]}
            yield event
    except (OSError, http.client.HTTPException) as error:
        raise LabError(
            f"The chat process is gone ({type(error).__name__}).",
            "Ask again; it starts anew. If it repeats, the machine may lack memory.",
        ) from None
    finally:
        closing.close()


def _refusal(response: http.client.HTTPResponse) -> str:
    """What the chat process says of a request that it does not answer."""
    try:
        reply = json.loads(response.read())
    except ValueError:
        reply = None
    said = part(reply, "error").get("message")
    return f"The chat process refused the question: {said or f'status {response.status}'}"


def end() -> bool:
    """End the chat process, so that its memory returns; False if there was none."""
    found = record()
    if found is None:
        return False
    process.send(found, signal.SIGTERM)
    for _ in range(50):
        if not process.is_alive(found):
            return True
        time.sleep(0.1)
    process.send(found, signal.SIGKILL)
    return True


def _connect(running: dict[str, Any]) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", running["port"], timeout=600)


def _ask(
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
    if access := credentials.access_line():  # a base may have to be fetched
        headers[credentials.HEADER] = base64.b64encode(access).decode()
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    return connection.getresponse()
