"""`python -m lab.rank RUN [OTHER]`: the background process of the Rank tab."""

import sys

from lab import paths
from lab.rank import measure

if __name__ == "__main__":
    raise SystemExit(measure.work(*(paths.run_dir(name) for name in sys.argv[1:3])))
