"""One submission of a form is one run, however often it is clicked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any

from lab import paths
from lab.checked_run import CheckedRun
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions

TICKET = re.compile(r"[a-z0-9]{12}", re.ASCII)
OLDEST_S = 7 * 24 * 3600.0


def new() -> str:
    """A ticket for one submission."""
    return secrets.token_hex(6)


def further(ticket: str, position: int) -> str:
    """The ticket of another run of the same submission."""
    return hashlib.sha256(f"{ticket} {position}".encode()).hexdigest()[:12]


def run_of(ticket: str) -> RunDir | None:
    """The run that this ticket has started, or None."""
    if not TICKET.fullmatch(ticket):
        return None
    try:
        run_id = _file(ticket).read_text(encoding="utf-8").split()[0]
        return paths.run_dir(run_id)
    except (OSError, LabError, IndexError):
        return None


def is_same(ticket: str, spec: dict[str, Any]) -> bool:
    """Whether this ticket was used for the very same form."""
    try:
        return _file(ticket).read_text(encoding="utf-8").split()[1] == _hash(spec)
    except (OSError, IndexError):
        return False


def _hash(spec: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


def start(checked: CheckedRun, ticket: str) -> RunDir:
    """The run of this ticket: started now, or found if another click was faster."""
    if not TICKET.fullmatch(ticket):
        raise LabError("This form is out of date.", "Reload the page.")
    file = _file(ticket)
    paths.make_folder(file.parent)
    _sweep(file.parent)
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        run_of_ticket = _run_of_concurrent_click(ticket)
        if run_of_ticket is not None:
            return run_of_ticket
        file.unlink(missing_ok=True)  # its run is gone, or its server died: the ticket is free
        return start(checked, ticket)
    try:
        run = actions.create_run_dir(checked)
        os.write(handle, f"{run.id} {_hash(checked.requested)}".encode())
        actions.submit(run)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    return run


def _run_of_concurrent_click(ticket: str) -> RunDir | None:
    """The run that a concurrent click is starting, or None if it fails."""
    for _ in range(30):
        run = run_of(ticket)
        if run is not None:
            return run
        time.sleep(0.1)
    return None


def _file(ticket: str) -> Path:
    return paths.home() / "tickets" / ticket


def _sweep(folder: Path) -> None:
    """Forget tickets of last week."""
    oldest = time.time() - OLDEST_S
    for file in folder.iterdir():
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < oldest:
                file.unlink()
