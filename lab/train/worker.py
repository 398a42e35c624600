"""One attempt at a run, from the spec to the result file."""

from __future__ import annotations

import time
import traceback
from typing import Any

from lab.errors import Cancelled, LabError
from lab.files import read_object, write_json
from lab.paths import RunDir
from lab.runs import process
from lab.spec import RunSpec
from lab.train.telemetry import Telemetry, sampler


def work(run: RunDir) -> int:
    """Run one attempt to its end; the exit code. Every way out but a kill writes result.json."""
    process.await_registration(run)
    stored = read_object(run.spec)
    attempt = 1 + sum(1 for _ in run.attempts.glob("*")) if run.attempts.is_dir() else 1
    telemetry = Telemetry(run, attempt)
    started = time.time()
    summary: dict[str, Any] = {}
    state, message, hint = "failed", "", ""
    try:
        if stored is None:
            raise LabError("spec.json is missing or damaged.", "Start a new run.")
        telemetry.start(sampler(run, uses_gpu=False))
        telemetry.enter("loading")
        from lab.train.attempt import Attempt  # imports torch: seconds, in which we already beat

        state = Attempt(run, RunSpec.stored(stored), telemetry).go(summary)
    except Cancelled:
        state = "cancelled"
    except LabError as error:
        message, hint = error.message, error.hint
        print(f"error: {error}", flush=True)
    except Exception as error:
        traceback.print_exc()
        message, hint = f"{type(error).__name__}: {error}", hint_for(error)
    finally:
        telemetry.enter("ended")
        telemetry.stop()
    write_json(
        run.result,
        {
            "v": 1,
            "state": state,
            "message": message,
            "hint": hint,
            "attempt": attempt,
            "started": started,
            "ended": time.time(),
            "summary": summary,
        },
    )
    return 1 if state == "failed" else 0


def hint_for(error: Exception) -> str:
    """What to do about an error of a library."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return (
            "Out of memory: halve train.batch_size and double train.accumulation, shorten "
            "data.max_length, or turn train.activation_checkpointing on."
        )
    if isinstance(error, OSError) and error.errno == 28:
        return "The disk is full: delete runs or checkpoints, then resume."
    return "The log has the whole traceback."
