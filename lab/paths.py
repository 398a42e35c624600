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
class RunDir:
    """The run directory, the contract between the worker and everybody who looks at it."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def estimate(self) -> Path:
        return self.path / "estimate.json"

    @property
    def process(self) -> Path:
        return self.path / "process.json"

    @property
    def queue(self) -> Path:
        return self.path / "queue.json"

    @property
    def claim(self) -> Path:
        return self.path / "queue.claimed"

    @property
    def ladder(self) -> Path:
        return self.path / "ladder.json"

    @property
    def ladder_choice(self) -> Path:
        return self.path / "ladder.chosen.json"

    @property
    def heartbeat(self) -> Path:
        return self.path / "heartbeat"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def held_out(self) -> Path:
        return self.path / "held_out.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def commands(self) -> Path:
        return self.path / "commands"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def resume(self) -> Path:
        return self.path / "resume.json"

    @property
    def pins(self) -> Path:
        return self.path / "pins.json"

    @property
    def labels(self) -> Path:
        return self.path / "labels.json"

    @property
    def first_batch(self) -> Path:
        return self.path / "first_batch.json"

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def killed(self) -> Path:
        return self.path / "killed.json"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"


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
