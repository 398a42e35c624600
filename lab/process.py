"""Identifies a process by PID, start time and boot ID, because PIDs are reused."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import devices, paths
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.hub import credentials, settings
from lab.paths import RunDir

REGISTRATION_S = 15.0


def identity(pid: int) -> dict[str, Any] | None:
    """pid, start time in clock ticks since boot, host and boot id; None if there is none."""
    ticks = start_ticks(pid)
    if ticks is None:
        return None
    return {"v": 1, "pid": pid, "start": ticks, "host": platform.node(), "boot": boot_id()}


def start_ticks(pid: int) -> int | None:
    """When the process started; None if it is gone or only a zombie is left of it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name in brackets may hold anything
    return None if fields[0] in ("Z", "X") else int(fields[19])


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def is_alive(record: Any) -> bool:
    """Whether the very process that `record` names still runs, on this host and boot."""
    if not isinstance(record, dict):
        return False
    pid = record.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid < 2:
        return False
    same = record.get("host") == platform.node() and record.get("boot") == boot_id()
    return same and start_ticks(pid) is not None and start_ticks(pid) == record.get("start")


def spawn(
    arguments: list[str],
    log: Path,
    stdin: int = subprocess.DEVNULL,
    variables: Mapping[str, str] | None = None,
    gpu: str | None = None,
    access: bytes | None = None,
) -> subprocess.Popen[bytes]:
    """`python -m ...` in a session of its own, on this home, its output in a file: a pipe that
    nobody reads would hang it, and it outlives whoever starts it. `variables` are its own
    environment variables beside those of this process. It sees the one device `gpu` (a UUID), if
    that is given. Tokens for the Hub are taken out of its environment; `access`, a line of
    `credentials.access_line`, goes through its standard input (`credentials.receive`)."""
    environment = credentials.without_tokens(os.environ) | {
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "LAB_HOME": str(paths.home()),
        "LAB_MODELS": str(paths.models()),
        **settings.for_children(),
        **(devices.only(gpu) if gpu else {}),
        **({credentials.FROM_STDIN: "1"} if access else {}),
        **(variables or {}),
    }
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=paths.ROOT,
            stdin=subprocess.PIPE if access else stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    if access and child.stdin is not None:
        with contextlib.suppress(OSError):  # it has ended already, and says so elsewhere
            child.stdin.write(access)
            child.stdin.close()
    return child


def send(record: Any, signum: signal.Signals) -> bool:
    """Signal exactly the process of `record`; False if it is gone. Nothing else is ever hit."""
    if not is_alive(record):
        return False
    try:
        handle = os.pidfd_open(record["pid"])
    except OSError:
        return False
    try:
        if not is_alive(record):  # the handle is now bound; look once more that it is the one
            return False
        signal.pidfd_send_signal(handle, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def send_group(record: Any, signum: signal.Signals) -> bool:
    """Signal the process of `record` and what it has started: its own process group, which it
    leads. False if it is gone or leads none; no other group is ever hit."""
    if not is_alive(record):
        return False
    try:
        if os.getpgid(record["pid"]) != record["pid"]:
            return send(record, signum)
        os.killpg(record["pid"], signum)
    except ProcessLookupError:
        return False
    return True


def group_members(leader: int) -> list[int]:
    """The living processes of the group that `leader` leads or led."""
    pids = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            text = Path(f"/proc/{entry.name}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        if fields[0] not in ("Z", "X") and int(fields[2]) == leader:
            pids.append(int(entry.name))
    return pids


def register(run: RunDir, pid: int, gpu: str | None = None) -> None:
    """Write `process.json` for a process just started, with the UUID of the GPU that it sees."""
    record = identity(pid)
    if record is None:
        raise LabError("The worker ended before it began.", f"See {run.log}.")
    write_json(run.process, record | {"gpu": gpu, "time": time.time()})


def await_registration(run: RunDir) -> None:
    """Called by the worker: wait until the launcher has written down who it is.

    A worker that nobody wrote down could not be found or stopped, so it ends instead.
    """
    deadline = time.monotonic() + REGISTRATION_S
    while time.monotonic() < deadline:
        record = read_object(run.process)
        if record and record.get("pid") == os.getpid():
            return
        time.sleep(0.02)
    raise SystemExit("process.json does not name this process; ending")
