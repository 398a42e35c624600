"""`python -m lab.evals score KEY`: the scores that Compare measures in the background."""

import sys

from lab import devices, host
from lab.evals import score_job
from lab.library_imports import import_libraries

if __name__ == "__main__":
    devices.pin(host.gpus())
    import_libraries()
    raise SystemExit(score_job.work(sys.argv[2]))
