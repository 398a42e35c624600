"""The token for the Hub: whose it is, and how another process of the lab gets it.

A token is held in memory and sent through a pipe or a socket of LAB_HOME. It is never written to a
file, and `without_tokens` keeps it out of the environment of every process that the lab starts.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lab.errors import LabError
from lab.hub import settings

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
FROM_STDIN = "LAB_ACCESS_ON_STDIN"  # set for a child whose first line of input is for us
HEADER = "X-Hub-Access"  # the same, between a page and the chat process on loopback
PAGE = "the token given on the page"
LETTERS = frozenset(string.ascii_letters + string.digits + string.punctuation)


@dataclass(frozen=True)
class HubToken:
    """`origin` says in words whose token it is: "the token in HF_TOKEN"."""

    value: str = field(repr=False)
    origin: str

    def to_json(self) -> dict[str, str]:
        return {"token": self.value, "origin": self.origin}

    @staticmethod
    def from_json(value: Any) -> HubToken | None:
        if not isinstance(value, dict) or not isinstance(value.get("token"), str):
            return None
        return (
            HubToken(value["token"], str(value.get("origin") or PAGE)) if value["token"] else None
        )


_given: list[HubToken] = []  # on a page, or by the process that started this one


def give(value: str, origin: str = PAGE) -> None:
    """Use this token from now on, in this process; an empty one takes it back.

    Raises LabError for text that cannot be a token.
    """
    token = checked(value, origin)
    _given[:] = [token] if token else []


def checked(value: str, origin: str) -> HubToken | None:
    """The token in a text; None for an empty one. Raises LabError for what cannot be a token."""
    value = value.strip()
    if not set(value) <= LETTERS:
        raise LabError(
            f"{origin[:1].upper()}{origin[1:]} holds characters that no token has.",
            "Copy it again from the settings of your account on the Hub; it begins with hf_.",
        )
    return HubToken(value, origin) if value else None


def current() -> HubToken | None:
    """The token that requests carry: the one given, else the environment's, else the one that
    `hf auth login` keeps."""
    if _given:
        return _given[0]
    if settings.is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    for name in VARIABLES:
        if value := os.environ.get(name, "").strip():
            return HubToken(value, f"the token in {name}")
    token_path = os.environ.get("HF_TOKEN_PATH")
    file = Path(token_path).expanduser() if token_path else settings.hf_home() / "token"
    try:
        value = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return HubToken(value, "the token of 'hf auth login'") if value else None


def adopt(token: HubToken | None) -> None:
    """Use what another process of the lab has sent; None leaves this process with its own."""
    _given[:] = [token] if token else []


def access_line(given: str | None = None) -> bytes | None:
    """What `read_line` takes in another process: the token and the network of this one; None where
    nothing is set that the other would not know by itself. `given` is a token for that process
    alone. Raises LabError for text that cannot be a token."""
    token = checked(given, PAGE) if given else current()
    network = settings.passed_on()
    if token is None and not any(network[name] for name in settings.PASSED_ON):
        return None
    value = {"hub": token.to_json() if token else None, "network": network}
    return json.dumps(value).encode() + b"\n"


def without_tokens(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key not in (*VARIABLES, FROM_STDIN)}


def read_line(stream: IO[Any]) -> None:
    """Adopt what the next line of `stream` says; an empty one leaves this process as it is."""
    try:
        value = json.loads(stream.readline() or "{}")
    except ValueError:
        return
    if isinstance(value, dict) and isinstance(value.get("network"), dict):
        adopt(HubToken.from_json(value.get("hub")))
        settings.adopt(value["network"])


def access_header() -> dict[str, str]:
    """What `adopt_header` takes, as headers of a request; empty where nothing is set."""
    line = access_line()
    return {HEADER: base64.b64encode(line).decode()} if line else {}


def adopt_header(value: str) -> None:
    """Adopt what a page has sent with its request to the chat process; "" changes nothing."""
    with contextlib.suppress(ValueError):
        read_line(io.BytesIO(base64.b64decode(value)))


def receive() -> None:
    """Called first in a process of the lab: take the token from the pipe, where there is one."""
    if os.environ.pop(FROM_STDIN, ""):
        read_line(sys.stdin)
