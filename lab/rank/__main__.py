"""`python -m lab.rank RUN [OTHER] | repair RUN`: the background processes of the Rank tab."""

import sys

from lab import paths
from lab.rank import measure, repair

if __name__ == "__main__":
    if sys.argv[1] == "repair":
        raise SystemExit(repair.work(paths.run_dir(sys.argv[2])))
    raise SystemExit(measure.work(*(paths.run_dir(name) for name in sys.argv[1:3])))
