"""Check a spec, make its run, put it into the queue."""

from __future__ import annotations

from typing import Any

from lab.paths import RunDir
from lab.preflight.client import planner
from lab.runs import actions


def start_run(spec: dict[str, Any]) -> RunDir:
    """The run of `spec`, in the queue. Raises SpecError with all problems before anything is
    written."""
    run = actions.create_run_dir(planner.check(spec))
    actions.submit(run)
    return run
