"""`python -m lab.evals RUN STEP`: measure a checkpoint on the held-out rows of its run."""

from __future__ import annotations

import sys

from lab import devices, host, paths
from lab.evals import checkpoint_loss


def main() -> int:
    run_id, step = sys.argv[1:]
    devices.pin(host.gpus())
    return checkpoint_loss.make(paths.run_dir(run_id), int(step))


if __name__ == "__main__":
    raise SystemExit(main())
