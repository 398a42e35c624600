"""`python -m lab`: the command line."""

import sys

from lab.cli import main

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        # a terminal that knows fewer letters shows their numbers
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    raise SystemExit(main())
