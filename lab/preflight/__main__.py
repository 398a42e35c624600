"""`python -m lab.preflight`: requests as lines of JSON on stdin, replies as such lines on stdout.

A request is {"id", "request": its JSON as text, "reads", "seconds", "part_seconds",
"memory_bytes"}, or {"cancel": the id of one}; a reply has the same "id" and "ok", "error" and
"hint", or "bug" and "traceback".
"""

from __future__ import annotations

import gc
import os
import sys

from lab.preflight import worker
from lab.preflight.pool import Pool


def main() -> int:
    # Libraries print to stdout; the replies go to a copy of it that only we hold.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def send(line: bytes) -> None:
        out.write(line + b"\n")
        out.flush()

    worker.load_libraries()
    # What is in memory now stays shared with the processes that are forked from this one.
    gc.collect()
    gc.freeze()
    try:
        Pool(send).run(sys.stdin.fileno())
    except BrokenPipeError:
        return 1  # nobody reads the replies any more
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
