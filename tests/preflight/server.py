"""The planner's own pool, without its libraries: requests do what they say."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from lab import stages
from lab.errors import LabError
from lab.preflight import __main__, worker

blocks: list[bytes] = []


def answer(request: dict[str, Any]) -> dict[str, Any]:
    kind = request["ask"]
    with stages.stage(request.get("stage", "request")):
        if kind == "echo":
            time.sleep(request.get("seconds", 0))
            return {"value": request["value"], "pid": os.getpid()}
        if kind == "spin":
            while True:
                pass
        if kind == "allocate":
            blocks.append(b"x" * request["bytes"])
            time.sleep(request.get("seconds", 0))
            return {"pid": os.getpid()}
        if kind == "die":
            os.kill(os.getpid(), request["signal"])
            time.sleep(60)
        if kind == "leave":
            os._exit(3)
        if kind == "deaf":  # to everything that can be ignored
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    continue
        if kind == "chatter":
            print("words of a library")
            os.write(1, b'{"id": 1, "ok": "not an answer"}\n')
            return {"value": "said"}
    raise LabError("unknown", "hint") if kind == "refuse" else KeyError(kind)


worker.answer = answer
worker.load_libraries = lambda: None

if __name__ == "__main__":
    raise SystemExit(__main__.main())
