"""`python -m lab.planner`: one JSON request a line on stdin, one JSON answer a line on stdout."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from lab.errors import LabError
from lab.planner.check import check, fixes
from lab.planner.estimate import estimate, limits, plan
from lab.planner.look import look


def answer(request: dict[str, Any]) -> dict[str, Any]:
    os.environ.update(request["where"])
    os.chdir(os.environ["PWD"])
    if request.get("ask") == "check":
        return {"ok": check(request["spec"])}
    if request.get("ask") == "fixes":
        return {"ok": fixes(request["spec"])}
    if request.get("ask") == "estimate":
        return {"ok": estimate(request["spec"], request.get("device"), request.get("how") or {})}
    if request.get("ask") == "limits":
        return {"ok": limits(request["spec"], request["device"])}
    if request.get("ask") == "plan":
        return {"ok": plan(request["spec"], request.get("device"))}
    if request.get("ask") == "look":
        return {"ok": look(request["spec"], request["most"])}
    if request.get("ask") == "warm":
        import peft  # noqa: F401
        import transformers.models.llama.modeling_llama  # noqa: F401

        import lab.memory.shadow.layers  # noqa: F401

        return {"ok": {}}
    raise LabError(f"unknown request {request.get('ask')!r}")


def main() -> int:
    # Libraries print to stdout; the answers go to a copy of it that only we hold.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except LabError as error:
            reply = {"error": error.message, "hint": error.hint}
        except Exception as error:
            traceback.print_exc()
            reply = {"bug": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
