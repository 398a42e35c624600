"""How many small faults the nearest tests see: `python tests/mutation.py [MODULE…]`, by hand.

Cosmic-ray makes the faults (`pip install -r requirements-mutation.txt`), one at a time, in a copy
of the working tree; each is tried by a fresh pytest on the files that are nearest to the module, so
that workers and other processes which tests start run the faulty code too. A fault counts as seen
where a test fails or never ends. `--sample` faults are drawn of each module by `--seed`, and the
whole ends after `--minutes`, shared by the modules; a module's line says how many were tried.

    python tests/mutation.py --sample 8 --minutes 10 --jobs 2
    python tests/mutation.py schedule loss --sample 0        every fault of two modules
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Beside these, every tests/**/test_MODULE*.py counts as near.
MODULES = {
    "step": (
        "lab/train/step.py",
        ["tests/train/test_loss.py", "tests/train/test_settings.py::test_the_losses_stay"],
    ),
    "loss": ("lab/train/loss.py", []),
    "schedule": ("lab/train/budget.py", []),
    "template": ("lab/data/chat_template.py", ["tests/data/test_masks.py"]),
    "prepare": ("lab/data/prepare.py", []),
    "status": ("lab/runs/status.py", []),
    "queue": ("lab/runs/queue.py", []),
    "checkpoint": (
        "lab/train/checkpoint.py",
        [
            "tests/train/test_optimizers.py"
            "::test_state_is_what_the_table_says_and_comes_back_exactly",
        ],
    ),
    "server": ("lab/chat/server.py", []),
    "guard": (
        "lab/ui/markdown_safety.py",
        ["tests/ui/test_pages.py::test_hostile_text_is_shown_as_text"],
    ),
    "script": (
        "lab/export/script.py",
        ["tests/ui/test_pages.py::test_the_plain_script_trains"],
    ),
    "table": ("lab/compare/comparison.py", ["tests/runs/test_result.py"]),
}
LEAST_S = 30.0  # what a module gets, however many share the time


@dataclass
class Outcome:
    """What became of the faults of one module."""

    name: str
    faults: int = 0
    tried: int = 0
    seen: int = 0
    seconds: float = 0.0
    note: str = ""
    unseen: list[str] = field(default_factory=list)

    def line(self) -> str:
        share = f"{self.seen / self.tried:4.0%}" if self.tried else "   –"
        figures = f"{self.seen:>4} of {self.tried:>4} tried, of {self.faults:>4}"
        return (
            f"{self.name:<12}{share}  seen {figures}  {self.seconds:5.0f} s  {self.note}".rstrip()
        )


def nearest(name: str) -> list[str]:
    """The tests of a module that there are: the files of its name, and the listed ones."""
    listed = [place for place in MODULES[name][1] if is_there(*place.split("::"))]
    own = sorted(
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob(f"test_{name}*.py")
        if "e2e" not in file.parts
    )
    return list(dict.fromkeys([*own, *listed]))


def is_there(file: str, test: str = "") -> bool:
    """Whether a test file exists, and the test in it."""
    path = ROOT / file
    return path.is_file() and f"def {test}" in path.read_text(encoding="utf-8")


def copy_of_tree(target: Path) -> Path:
    """The tracked and the new files of the working tree, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_file() and not source.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    return target


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations stand, as (line, column) of start and end: they are never evaluated, so
    that a fault in one is none."""
    places = []
    for node in ast.walk(ast.parse(source)):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(part, ast.expr):
                end = (part.end_lineno or part.lineno, part.end_col_offset or 0)
                places.append(((part.lineno, part.col_offset), end))
    return places


def faults_of(file: Path, workplace: Path) -> list[Any]:
    """Cosmic-ray's mutations of a file, in the order of its lines."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB, use_db

    with use_db(workplace / f"{file.stem}.sqlite", WorkDB.Mode.create) as database:
        init([file], database, {})
        made = [change for item in database.work_items for change in item.mutations]
    spans = annotations(file.read_text(encoding="utf-8"))
    real = [
        change
        for change in made
        if not any(start <= change.start_pos < end for start, end in spans)
    ]
    return sorted(real, key=lambda one: (one.start_pos, one.operator_name, one.occurrence))


def measure(name: str, sample: int, seed: int, seconds: float) -> Outcome:
    """Try faults of a module, in a copy of its own, for `seconds` at most."""
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.work_item import TestOutcome

    found, started = Outcome(name), time.monotonic()
    tests = nearest(name)
    if not tests:
        found.note = "no test is near it: nothing is seen"
        return found
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        place = copy_of_tree(Path(folder) / "lab")
        command = [
            *("env", "-C", str(place), "PYTHONDONTWRITEBYTECODE=1", sys.executable),
            *("-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"),
            *("--basetemp", str(Path(folder) / "pytest"), *tests),
        ]
        sound = subprocess.run(command, capture_output=True, text=True)
        longest = 2 * (time.monotonic() - started) + 20
        if sound.returncode != 0:
            last = (sound.stdout.strip().splitlines() or ["no output"])[-1]
            found.note = f"the tests fail without a fault: {last}"
            return found
        faults = faults_of(place / MODULES[name][0], Path(folder))
        found.faults = len(faults)
        drawn = list(faults)
        random.Random(f"{seed} {name}").shuffle(drawn)
        for fault in drawn[: sample or None]:
            left = seconds - (time.monotonic() - started)
            if left < longest / 4 and found.tried:
                found.note = "the time was up"
                break
            result = mutate_and_test([fault], " ".join(command), longest)
            if result.test_outcome not in (TestOutcome.KILLED, TestOutcome.SURVIVED):
                continue
            found.tried += 1
            if result.test_outcome == TestOutcome.KILLED:
                found.seen += 1
            else:
                line = fault.start_pos[0]
                found.unseen.append(f"{MODULES[name][0]}:{line} {fault.operator_name}")
    found.seconds = time.monotonic() - started
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--sample", type=int, default=20, help="faults of a module; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0, help="for all modules together")
    parser.add_argument("--jobs", type=int, default=1, help="modules at the same time")
    parser.add_argument("--unseen", action="store_true", help="list the faults that nobody saw")
    given = parser.parse_args()
    names = given.modules or list(MODULES)
    if unknown := [name for name in names if name not in MODULES]:
        parser.error(f"unknown module {', '.join(unknown)}. Choose of: {', '.join(MODULES)}.")
    try:
        import cosmic_ray  # noqa: F401
    except ImportError:
        parser.error("cosmic-ray is missing. Run: pip install -r requirements-mutation.txt")
    os.nice(5)
    share = max(LEAST_S, 60 * given.minutes * given.jobs / len(names))
    made = []
    with ThreadPoolExecutor(given.jobs) as pool:
        waiting = [pool.submit(measure, name, given.sample, given.seed, share) for name in names]
        for one in waiting:
            made.append(one.result())
            print(made[-1].line(), flush=True)
            if given.unseen:
                print("".join(f"    {fault}\n" for fault in made[-1].unseen), end="")
    whole = Outcome(
        "all", *(sum(getattr(one, key) for one in made) for key in ("faults", "tried", "seen"))
    )
    print(whole.line())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
