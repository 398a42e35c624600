"""`python -m lab.train RUN_DIR`: the worker. Started by the launcher, in its own session."""

from __future__ import annotations

import sys
from pathlib import Path

from lab.paths import RunDir
from lab.train.worker import work

if __name__ == "__main__":
    raise SystemExit(work(RunDir(Path(sys.argv[1]))))
