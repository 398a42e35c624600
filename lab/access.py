"""Who may use the web server: anyone with the lab's token or its cookie.

The token is LAB_TOKEN, or else drawn once and kept in LAB_HOME/access.json, which only its owner
can read. The cookie is not the token: it is its own last day, signed with a key of the token and of
a secret in that file. So it outlives a restart of the server, and ends when the token changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lab import paths
from lab.atomic_files import read_object, write_atomic

COOKIE_S = 30 * 24 * 3600
OPEN = (
    "This lab was started without a token: every account of this machine can use it, and read with "
    "it what you can read."
)
MIN_TOKEN_CHARS = 16  # characters; a shorter LAB_TOKEN can be guessed
COOKIE = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True)
class Access:
    """A token and what signs its cookies. `is_fixed`: it is LAB_TOKEN, not drawn by the lab."""

    token: bytes
    secret: bytes
    is_fixed: bool = False
    warning: str = ""

    def is_token(self, value: bytes) -> bool:
        """Compared in constant time; the time does not depend on the token's length either."""
        return hmac.compare_digest(
            hashlib.sha256(value).digest(), hashlib.sha256(self.token).digest()
        )

    @property
    def cookie_name(self) -> str:
        """Cookies ignore ports: two labs on one machine must not write over each other's."""
        return f"finetune-lab-{self._sign(b'name')[:12]}"

    def cookie(self) -> str:
        """A value that `is_cookie` takes for 30 days from now."""
        last = str(int(time.time()) + COOKIE_S)
        return f"{last}.{self._sign(last.encode())}"

    def is_cookie(self, value: str) -> bool:
        match = COOKIE.fullmatch(value)
        if match is None:
            return False
        signed = hmac.compare_digest(self._sign(match[1].encode()).encode(), match[2].encode())
        return signed and time.time() < int(match[1])

    def _sign(self, text: bytes) -> str:
        key = hmac.digest(self.secret, self.token, "sha256")
        return hmac.digest(key, text, "sha256").hex()


def is_required() -> bool:
    """False where `--no-token` (behind `--` of `streamlit run`) or LAB_NO_TOKEN=1 is set."""
    switch = os.environ.get("LAB_NO_TOKEN", "").strip().lower()
    return switch not in ("1", "true", "yes", "on") and "--no-token" not in sys.argv[1:]


def warnings() -> list[str]:
    """What the person who runs this server needs to know about access to it."""
    messages = [paths.home_warning()]
    if not is_required():
        return [OPEN, *filter(None, messages)]
    token = current()
    if token.is_fixed and len(token.token) < MIN_TOKEN_CHARS:
        messages += [
            f"LAB_TOKEN has fewer than {MIN_TOKEN_CHARS} characters, so that it can be guessed."
        ]
    return [text for text in (token.warning, *messages) if text]


@cache
def current() -> Access:
    """The access of this process, the same until it ends."""
    return load()


def load() -> Access:
    """LAB_TOKEN, or the token of LAB_HOME; drawn, and kept there, on the first call. A home that
    cannot be written costs its staying the same, not the lab: `warning` says so."""
    warning = ""
    try:
        record = _stored()
    except OSError as error:
        record = _drawn()
        warning = (
            f"The token could not be kept in {paths.home()} ({error.strerror or error}): the next "
            "start of the server will have another."
        )
    # a variable set to nothing, or to spaces, is not a token
    fixed = os.environ.get("LAB_TOKEN", "").strip().encode("utf-8", "surrogateescape")
    token = fixed or record["token"].encode()
    return Access(token, bytes.fromhex(record["secret"]), bool(fixed), warning)


def _stored() -> dict[str, Any]:
    file = paths.home() / "access.json"
    if (record := _read(file)) is not None:
        return record
    paths.make_folder(file.parent)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two servers at once draw one token
        record = _read(file)
        if record is None:
            record = _drawn()
            write_atomic(file, json.dumps(record) + "\n", private=True)
    return record


def _drawn() -> dict[str, Any]:
    return {"v": 1, "token": secrets.token_hex(24), "secret": secrets.token_hex(32)}


def _read(file: Path) -> dict[str, Any] | None:
    """The record, unless it is damaged, or another account could have read or written it."""
    try:
        info = file.lstat()
        owners = (os.geteuid(), file.parent.stat().st_uid)
    except OSError:
        return None
    if not stat.S_ISREG(info.st_mode) or info.st_mode & 0o077 or info.st_uid not in owners:
        return None
    record = read_object(file) or {}
    parts = [str(record.get(name, "")) for name in ("token", "secret")]
    return record if all(re.fullmatch(r"[0-9a-f]{32,128}", part) for part in parts) else None
