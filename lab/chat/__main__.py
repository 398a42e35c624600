"""`python -m lab.chat`: the chat process. Takes a free loopback port and writes it down."""

from __future__ import annotations

import json
import os
import secrets

from lab import collector, devices, host, paths, process
from lab.atomic_files import write_atomic
from lab.hub import credentials


def main() -> int:
    credentials.receive()
    devices.pin(host.gpus())
    with collector.paused(freeze=True):  # as much as a page waits for; the first model imports more
        import uvicorn

        from lab.chat.server import application, loopback

    token = secrets.token_urlsafe(32)
    listener = loopback()
    record = process.identity(os.getpid()) or {}
    record |= {"port": listener.getsockname()[1], "token": token}
    folder = paths.make_folder(paths.home() / "chat")
    server = uvicorn.Server(uvicorn.Config(application(token), log_level="warning"))
    write_atomic(folder / "process.json", json.dumps(record), private=True)
    server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
