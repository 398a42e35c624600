"""`python -m lab.chat`: the chat process. Takes a free loopback port and writes it down."""

from __future__ import annotations

import json
import os
import secrets
import socket

from lab import paths
from lab.runs import process


def main() -> int:
    import uvicorn

    from lab.chat.server import application

    token = secrets.token_urlsafe(32)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    record = process.identity(os.getpid()) or {}
    record |= {"port": listener.getsockname()[1], "token": token}
    folder = paths.home() / "chat"
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".process.json.tmp"
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        os.fchmod(handle, 0o600)  # a file that a killed process left may have another mode
        file.write(json.dumps(record))
    server = uvicorn.Server(uvicorn.Config(application(token), log_level="warning"))
    os.replace(aside, folder / "process.json")
    server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
