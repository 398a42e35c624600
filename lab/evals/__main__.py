"""`python -m lab.evals score KEY`: the scores that Compare measures in the background."""

import sys

from lab import devices, host
from lab.evals import score_job

if __name__ == "__main__":
    devices.pin(host.gpus())
    raise SystemExit(score_job.work(sys.argv[2]))
