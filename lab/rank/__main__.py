"""`python -m lab.rank RUN [OTHER] | repair RUN | convert RUN`: background work of the Rank tab."""

import sys

from lab import paths
from lab.library_imports import import_libraries
from lab.rank import convert, measure, repair

if __name__ == "__main__":
    import_libraries()
    if sys.argv[1] == "repair":
        raise SystemExit(repair.work(paths.run_dir(sys.argv[2])))
    if sys.argv[1] == "convert":
        raise SystemExit(convert.work(paths.run_dir(sys.argv[2])))
    raise SystemExit(measure.work(*(paths.run_dir(name) for name in sys.argv[1:3])))
