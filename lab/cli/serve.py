"""serve: models behind OpenAI's API on this machine, without a browser."""

from __future__ import annotations

import argparse
import os
import secrets
from typing import Any

from lab.chat.models import FORMS, parse
from lab.cli import downloads
from lab.cli.console import Output, say
from lab.errors import LabError
from lab.formatting import quantity

MIN_KEY_CHARS = 16  # characters


def add(verb: Any) -> None:
    sub = verb("serve", run, "answer OpenAI's API on this machine, until Ctrl-C")
    sub.add_argument("models", nargs="+", metavar="MODEL", help=FORMS)
    sub.add_argument("--port", type=int, default=8600, help="0 takes a free one; default: 8600")


def run(arguments: argparse.Namespace) -> Output:
    names = [parse(name) for name in arguments.models]
    key = os.environ.get("LAB_TOKEN") or secrets.token_urlsafe(32)
    if len(key) < MIN_KEY_CHARS:
        raise LabError(
            f"LAB_TOKEN has {quantity(len(key), 'character')}.",
            f"Use {MIN_KEY_CHARS} or more, or leave it out.",
        )
    if not 0 <= arguments.port < 65_536:
        raise LabError(f"--port {arguments.port} is not a port.", "Use 0 to 65535.")

    def display() -> None:
        _serve(names, key, arguments.port)

    return Output({}, display)


def _serve(names: list[Any], key: str, port: int) -> None:
    import uvicorn

    from lab import devices, host
    from lab.chat.engine.loaded_models import LoadedModels
    from lab.chat.server import application, loopback

    devices.pin(host.gpus())
    try:
        listener = loopback(port)
    except OSError as error:
        raise LabError(
            f"Port {port} cannot be used: {error.strerror}.", "Choose another --port."
        ) from None
    downloads.fetch_models(names)
    models = LoadedModels()
    in_use = frozenset(named.name for named in names)
    for named in names:
        say(f"Loading {named.name} …")
        proof = models.get(named, in_use).proof
        for problem in proof.problems if proof else []:
            say(f"WARNING: {problem}", error=True)
    say(f"OPENAI_BASE_URL=http://127.0.0.1:{listener.getsockname()[1]}/v1")
    say(f"OPENAI_API_KEY={key}")
    say("Models: " + ", ".join(named.name for named in names))
    app = application(key, models=models, ends_when_idle=False)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
