"""`python -m lab.export merged|gguf RUN TYPE | push RUN | combine`: work of the Results page in the
background, each with a record of how far it is."""

from __future__ import annotations

import sys

from lab import devices, host, paths
from lab.export import combine, exports, push
from lab.hub import credentials
from lab.library_imports import import_libraries


def main() -> int:
    credentials.receive()
    kind, *names = sys.argv[1:]
    if kind == "push":
        return push.make(paths.run_dir(names[0]))
    devices.pin(host.gpus())
    import_libraries()
    if kind == "combine":
        return combine.make()
    return exports.make(paths.run_dir(names[0]), kind, names[1])


if __name__ == "__main__":
    raise SystemExit(main())
