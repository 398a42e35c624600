"""How many small faults the nearest tests see: `python tests/mutation.py [MODULE…]`, by hand.

Cosmic-ray makes the faults (`pip install -r requirements-mutation.txt`), one at a time, on the disk
of a copy of the working tree, so that workers and other processes which tests start run the faulty
code too. Each is tried by pytest on the tests that are nearest to the module, in a process forked
from one that has imported the large libraries already. A fault counts as seen where a test fails
or never ends. `--sample` faults are drawn of each module by `--seed`; all ends after `--minutes`,
which the modules share: a line says how many were tried.

    python tests/mutation.py --sample 8 --minutes 10 --jobs 2
    python tests/mutation.py schedule loss --sample 0        every fault of two modules
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Beside these, every tests/**/test_FILE*.py of the module's file counts as near.
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
    "server": ("lab/chat/server.py", ["tests/chat/test_requests.py"]),
    "guard": (
        "lab/ui/markdown_safety.py",
        ["tests/ui/test_pages.py::test_hostile_text_is_shown_as_text"],
    ),
    "script": (
        "lab/export/script.py",
        ["tests/ui/test_pages.py::test_the_plain_script_trains"],
    ),
    "table": (
        "lab/compare/comparison.py",
        [
            "tests/runs/test_result.py::test_a_finished_run_tells_everything",
        ],
    ),
}
# `==` for `is` and the like: the same for None, numbers and words, which is what they compare
EQUIVALENT = ("_Eq_Is", "_Is_Eq", "_NotEq_IsNot", "_IsNot_NotEq")
LARGE = (
    *("torch", "transformers", "peft", "bitsandbytes", "safetensors.torch", "pandas", "plotly"),
    *("streamlit.testing.v1", "transformers.models.llama.modeling_llama", "accelerate", "trl"),
)


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
        for file in (ROOT / "tests").rglob(f"test_{Path(MODULES[name][0]).stem}*.py")
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
        changes = [change for item in database.work_items for change in item.mutations]
    spans = annotations(file.read_text(encoding="utf-8"))
    real = [
        change
        for change in changes
        if not change.operator_name.endswith(EQUIVALENT)
        and not any(start <= change.start_pos < end for start, end in spans)
    ]
    return sorted(real, key=lambda one: (one.start_pos, one.operator_name, one.occurrence))


def warm() -> None:
    """Import what nearly every test needs, so that the forked processes need not."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a fault may be as old as the code it replaces
    sys.dont_write_bytecode = True
    for name in LARGE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def run_tests(place: Path, tests: list[str], timeout: float) -> int | None:
    """pytest's exit code in a process of its own; None if it had not ended in time."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setsid()
            output = os.open(place.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(place)
            sys.path[0] = str(place)
            options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore"]
            import pytest

            code = int(pytest.main([*options, "--basetemp", str(place.parent / "made"), *tests]))
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + timeout
    ended = 0
    while not ended and time.monotonic() < end:
        time.sleep(0.05)
        ended, state = os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the tests have left, and pytest if it hangs
    if ended:
        return os.waitstatus_to_exitcode(state)
    os.waitpid(child, 0)
    return None


def measure(name: str, sample: int, seed: int, end: float, share: float) -> Outcome:
    """Try faults of a module, in a copy of its own, for a `share` of the time until `end`: what the
    modules before it have left is shared by those that follow."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import use_mutation

    outcome, started = Outcome(name), time.monotonic()
    seconds = share * (end - started)
    tests = nearest(name)
    if not tests:
        outcome.note = "no test is near it: nothing is seen"
        return outcome
    with tempfile.TemporaryDirectory(prefix="mutation-", ignore_cleanup_errors=True) as folder:
        place = copy_of_tree(Path(folder) / "lab")
        file = place / MODULES[name][0]
        begun = time.monotonic()
        if run_tests(place, tests, timeout=600) != 0:
            lines = (place.parent / "output.txt").read_text(errors="replace").strip().splitlines()
            reasons = [line for line in lines if line.startswith(("ERROR", "FAILED"))]
            reason = (reasons or lines or ["no output"])[-1]
            outcome.note = f"the tests fail without a fault: {reason}"
            return outcome
        longest = 3 * (time.monotonic() - begun) + 20
        faults = faults_of(file, Path(folder))
        outcome.faults = len(faults)
        random.Random(f"{seed} {name}").shuffle(faults)
        for fault in faults[: sample or None]:
            if time.monotonic() - started > seconds:
                outcome.note = "the time was up"
                break
            operator = plugins.get_operator(fault.operator_name)(**fault.operator_args)
            with use_mutation(file, operator, fault.occurrence) as (_, faulty):
                if faulty is None:
                    continue
                code = run_tests(place, tests, longest)
            outcome.tried += 1
            if code == 0:
                line = fault.start_pos[0]
                outcome.unseen.append(f"{MODULES[name][0]}:{line} {fault.operator_name}")
            else:
                outcome.seen += 1
    outcome.seconds = time.monotonic() - started
    return outcome


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
    warm()
    end = time.monotonic() + 60 * given.minutes
    created: list[Outcome] = []
    # a process for each module: what one has loaded, the next does not see
    with multiprocessing.get_context("fork").Pool(given.jobs, maxtasksperchild=1) as pool:
        asked = [
            (name, given.sample, given.seed, end, min(1.0, given.jobs / (len(names) - place)))
            for place, name in enumerate(names)
        ]
        for one in [pool.apply_async(measure, arguments) for arguments in asked]:
            created.append(one.get())
            print(created[-1].line(), flush=True)
            if given.unseen:
                print("".join(f"    {fault}\n" for fault in created[-1].unseen), end="")
    whole = Outcome(
        "all", *(sum(getattr(row, key) for row in created) for key in ("faults", "tried", "seen"))
    )
    print(whole.line())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
