"""`python -m lab.train RUN_DIR`: the worker. Started by the launcher, in its own session.

`python -m lab.train --spare` is a worker that has imported its libraries and waits on its standard
input for the run directory, and what it is told of the Hub. The end of that input means that its
supervisor is gone: it ends too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lab import devices, host
from lab.hub import credentials
from lab.library_imports import import_libraries
from lab.paths import RunDir
from lab.train.telemetry import keep_freed_memory
from lab.train.worker import work


def spare() -> int:
    """Import what every worker needs, wait for a run, and do it."""
    import_libraries()
    import lab.train.attempt  # noqa: F401

    line = sys.stdin.readline().strip()
    if not line:
        return 0
    credentials.read_line(sys.stdin)
    run = RunDir(Path(line))
    with run.log.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    return work(run)


if __name__ == "__main__":
    devices.pin(host.gpus())  # before anything initialises CUDA
    keep_freed_memory()
    credentials.receive()
    raise SystemExit(spare() if sys.argv[1] == "--spare" else work(RunDir(Path(sys.argv[1]))))
