"""One of the planner's processes: answers one request after another, over two pipes.

It is forked from a process that has the libraries in memory, keeps what it has learned for the next
request, and may be ended at any moment.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from dataclasses import asdict
from typing import Any, BinaryIO

from lab import host, stages
from lab.errors import LabError, SpecError
from lab.hub import credentials, settings
from lab.library_imports import import_libraries

STAGE, REPLY = b"S", b"R"  # how a line to the pool begins
PR_SET_PDEATHSIG = 1


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer the lines of `requests` until they end."""

    def tell(stage: str) -> None:
        replies.write(STAGE + stage.encode() + b"\n")
        replies.flush()

    stages.listen(tell)
    for line in requests:
        job = json.loads(line)
        reply = {"id": job["id"], **_reply(job["request"])}
        replies.write(REPLY + json.dumps(reply).encode() + b"\n")
        replies.flush()


def _reply(request: str) -> dict[str, Any]:
    try:
        return {"ok": answer(json.loads(request))}
    except LabError as error:
        return {"error": error.message, "hint": error.hint}
    except MemoryError:
        return {"error": "The request takes more memory than there is.", "hint": ""}
    except RecursionError:
        return {"error": "The request is nested too deeply.", "hint": "Nest its values less."}
    except Exception as error:
        traceback.print_exc()
        text = traceback.format_exc()[-4000:]
        return {"bug": f"{type(error).__name__}: {error}", "traceback": text}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    os.environ.update(request["where"])
    settings.adopt(request["network"])
    credentials.adopt(credentials.HubToken.from_json(request.get("token")))
    try:
        os.chdir(os.environ["PWD"])
    except OSError as error:
        raise LabError(
            f"The folder {os.environ['PWD']} cannot be entered: {error.strerror}.",
            "Ask again from another folder.",
        ) from None
    try:
        return answer_to(request)
    except SpecError as error:
        return {"problems": [problem.to_json() for problem in error.problems]}


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    """The answer, whatever the environment. Raises LabError."""
    from lab.data import dataset_preview
    from lab.preflight import answers, validate

    kind, device = request.get("ask"), request.get("device")
    if kind == "check":
        return validate.check(request["spec"]).to_json()
    if kind == "fixes":
        peak, savings = answers.fixes(request["spec"])
        return {"peak_bytes": peak, "fixes": [asdict(saving) for saving in savings]}
    if kind == "estimate":
        return answers.estimate(request["spec"], device, request.get("how")).to_json()
    if kind == "limits":
        return asdict(answers.limits(request["spec"], device or {}))
    if kind == "plan":
        return answers.plan(request["spec"], device).to_json()
    if kind == "look":
        may_fetch = request.get("may_fetch") is True
        return dataset_preview.look(request["spec"], request["most"], may_fetch=may_fetch).to_json()
    if kind == "warm":
        load_libraries()
        import_libraries()
        return {}
    raise LabError(f"unknown request {kind!r}")


def load_libraries() -> None:
    """Import what requests need and may be in memory before a process is forked.

    Not peft where there is a GPU: it imports bitsandbytes, which starts CUDA, and CUDA does not
    survive a fork.
    """
    import_libraries(with_peft=not host.gpus())
    import lab.data.dataset_preview
    import lab.forecast.trace.layer_repetition
    import lab.preflight.answers
    import lab.preflight.validate
    import lab.train.flops
    import lab.train.loss  # noqa: F401


def prepare(parent: int) -> None:
    """Set up a forked process: it ends with its parent, and is the first to go without memory."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError as error:  # not everywhere allowed; the pool watches the memory too
        print(f"oom_score_adj: {error}", file=sys.stderr)
