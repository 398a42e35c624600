"""Paths of everything the lab stores.

LAB_HOME and LAB_MODELS are read on every call, never at import.
"""

from __future__ import annotations

import os
import random
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.schema import quote

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9-]{1,40}-[a-z0-9]{4}", re.ASCII)


def home() -> Path:
    """LAB_HOME, by default ~/.finetune-lab. The lab writes here and under `models()` only."""
    return Path(os.environ.get("LAB_HOME") or Path.home() / ".finetune-lab").absolute()


def models() -> Path:
    """LAB_MODELS, by default LAB_HOME/models: converted models, shared between homes."""
    return Path(os.environ.get("LAB_MODELS") or home() / "models").absolute()


def runs() -> Path:
    return home() / "runs"


def make_folder(folder: Path) -> Path:
    """`folder`, created with what is missing above it. Raises OSError.

    Every folder of the lab is made here: LAB_HOME belongs to its owner alone (0700) from the moment
    it exists, and a home of ours that others could look into is closed.
    """
    base = home()
    if folder == base or base in folder.parents:
        base.parent.mkdir(parents=True, exist_ok=True)
        try:
            base.mkdir(mode=0o700)
        except FileExistsError:
            _close(base)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _close(base: Path) -> None:
    """Take the rights of others from a LAB_HOME of ours. A folder that is more than that, such as
    /tmp or the account's own home, stays as it is; `home_warning` tells of it."""
    info = base.stat()
    is_shared = info.st_mode & stat.S_ISVTX or base.resolve() == Path.home().resolve()
    if info.st_mode & 0o077 and info.st_uid == os.geteuid() and not is_shared:
        base.chmod(stat.S_IMODE(info.st_mode) & ~0o077)


def home_warning() -> str:
    """How other accounts of this machine get at LAB_HOME; "" if they do not."""
    try:
        info = home().stat()
    except OSError:
        return ""
    if info.st_mode & 0o077:
        return (
            f"Other accounts of this machine can look into {home()} "
            f"(mode {stat.S_IMODE(info.st_mode):04o}). Set LAB_HOME to a folder of your own."
        )
    return ""


@dataclass(frozen=True)
class _Entry:
    """A file or folder of a run directory, as a Path."""

    name: str

    def __get__(self, run: RunDir, owner: type) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class RunDir:
    """The run directory, the contract between the worker and everybody who looks at it."""

    path: Path

    spec = _Entry("spec.json")
    environment = _Entry("environment.json")
    estimate = _Entry("estimate.json")
    process = _Entry("process.json")
    queue = _Entry("queue.json")
    claim = _Entry("queue.claimed")
    ladder = _Entry("ladder.json")
    ladder_choice = _Entry("ladder.chosen.json")
    heartbeat = _Entry("heartbeat")
    metrics = _Entry("metrics.jsonl")
    held_out = _Entry("held_out.jsonl")
    events = _Entry("events.jsonl")
    log = _Entry("log.txt")
    commands = _Entry("commands")
    checkpoints = _Entry("checkpoints")
    resume = _Entry("resume.json")
    pins = _Entry("pins.json")
    labels = _Entry("labels.json")
    first_batch = _Entry("first_batch.json")
    artifact = _Entry("artifact")
    exports = _Entry("exports")
    result = _Entry("result.json")
    killed = _Entry("killed.json")
    attempts = _Entry("attempts")

    @property
    def id(self) -> str:
        return self.path.name


def run_dir(run_id: str) -> RunDir:
    """The directory of an existing run. Raises LabError for an id that names none.

    The id is matched as a whole against its own alphabet, so a path, `..` or NUL never gets
    as far as the file system; a symlink in the runs folder is not a run.
    """
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        raise LabError(
            f"'{quote(run_id)}' is not a run id.",
            "Run ids look like 20261122-101530-lora-k3f9; 'python -m lab runs' lists them.",
        )
    path = runs() / run_id
    if path.is_symlink() or not path.is_dir():
        raise LabError(f"There is no run {run_id}.", "'python -m lab runs' lists the runs.")
    return RunDir(path)


def all_runs() -> list[RunDir]:
    """Every run, newest first (ids sort by time)."""
    folder = runs()
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if RUN_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    return [RunDir(folder / name) for name in sorted(names, reverse=True)]


LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"


def new_run_id(method: str) -> str:
    """Sorts by time and is safe in a URL and a path: 20261122-101530-lora-k3f9."""
    slug = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")[:40] or "run"
    while True:
        suffix = "".join(random.SystemRandom().choices(LETTERS, k=4))
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{suffix}"
        if not (runs() / run_id).exists():
            return run_id
