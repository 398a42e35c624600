"""Invalid requests to a real chat process."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.hostile.case import ODD, Case, WronglyTaken, damaged, filled, garbled
from lab.chat import client, requests
from lab.errors import LabError

SHARE = 0.12
GOOD: dict[str, Any] = {
    "model": "base:builtin:no-such-model",
    "messages": [{"role": "user", "content": "Hi"}],
    "seed": 3,
    "max_tokens": 5,
    "temperature": 0.5,
}
TEXTS = (b"", b"{", b"[]", b"null", b"5", b'"Hi"', b"\xff\xfe", b"[" * 900 + b"]" * 900,
         b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}", b'{"seed": 1, "seed": 2}',
         b" " * 4_100_000, b'{"a":' * 900 + b"1" + b"}" * 900, b"\x00" * 1000)  # fmt: skip
MESSAGES: tuple[Any, ...] = (
    *ODD[:-2], [{}], [{"role": "user"}], [{"content": "x"}], [{"role": "root", "content": "x"}],
    [{"role": 5, "content": "x"}], [{"role": "user", "content": 5}],
    [{"role": "user", "content": "\ud800"}], [{"role": "user", "content": "x" * 300_000}],
    [{"role": "user", "content": "x", "tool": 1}], [{"role": "assistant", "content": "x"}],
    [{"role": "user", "content": "x"}] * 2000, [["user", "x"]],
)  # fmt: skip


@contextmanager
def prepared(folder: Path, chance: random.Random, count: int) -> Iterator[list[Case]]:
    record = client.ensure()

    def case(name: str, body: bytes, token: str | None = None) -> Case:
        return Case("request", name, lambda: _post(record, body, token))

    def field(key: str, value: Any) -> Case:
        return case(f"{key}={str(value)[:30]!r}", json.dumps({**GOOD, key: value}).encode())

    good = json.dumps(GOOD).encode()
    written = [Case("request", "a good one", lambda: requests.read(good), "accepted")]
    written += [case(repr(body[:30]), body) for body in TEXTS]
    written += [field("messages", value) for value in MESSAGES]
    # the model does not exist, so what slips through is refused for that, with another code
    written += [
        field(key, odd)
        for key in ("seed", "max_tokens", "temperature", "system_prompt", "model", "stream")
        for odd in (*ODD, -5, 10**10)
    ]
    written += [field(key, 1) for key in ("top_p", "n", "", "x" * 500)]
    written += [case(f"token {token!r}", good, token) for token in ("", "x", "Bearer")]

    def more(i: int) -> Case:
        if i % 2:
            return case(f"damaged {i}", damaged(chance, good))
        return case(f"garbled {i}", json.dumps(garbled(chance, GOOD)).encode())

    try:
        yield filled(chance, written, count, more)
    finally:
        client.end()


def _post(record: dict[str, Any], body: bytes, token: str | None) -> None:
    """Raises LabError for a refusal in JSON, WronglyTaken for any other reply."""
    connection = http.client.HTTPConnection("127.0.0.1", record["port"], timeout=30)
    try:
        headers = {"Authorization": f"Bearer {record['token'] if token is None else token}"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        reply = connection.getresponse()
        content = reply.read()
    finally:
        connection.close()
    if reply.status not in (400, 401, 404, 413, 422):
        raise WronglyTaken(f"is answered with {reply.status}: {content[:100]!r}")
    try:
        error = json.loads(content)["error"]
        message = error if isinstance(error, str) else error["message"]
    except (ValueError, KeyError, TypeError):
        raise WronglyTaken(f"the refusal is not JSON: {content[:100]!r}") from None
    if "Traceback" in message or "Error:" in message:
        raise WronglyTaken(f"is refused in Python's words: {message[:100]}")
    raise LabError(message)
