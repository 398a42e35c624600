"""`python -m lab`: the command line."""

import os
import sys

from lab.cli import main
from lab.hub import credentials, settings

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        # a terminal that knows fewer letters shows their numbers
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    os.environ.update(settings.for_children())  # libraries ask no hub: the lab does
    credentials.receive()
    raise SystemExit(main())
