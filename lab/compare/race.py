"""The same data and budget for several methods: one spec becomes a run for each method and seed.

Everything is checked before anything starts. The runs go into the queue; the race's id is a tag
on each of them, so that they can be found together afterwards.
"""

from __future__ import annotations

import copy
import random
import re
import shutil
import time
from dataclasses import dataclass, replace
from typing import Any

from lab import methods, paths
from lab.atomic_files import part, read_object
from lab.checked_run import CheckedRun
from lab.errors import LabError, Problem, SpecError
from lab.paths import RunDir
from lab.preflight import same_commits
from lab.runs import actions, index
from lab.schema import quote, unknown_key
from lab.spec_sections import TrainSpec

BUDGETS = {
    "tokens": "max_tokens",
    "seconds": "max_seconds",
    "flops": "max_flops",
    "steps": "max_steps",
}
AXES = {"tokens": "tokens", "seconds": "seconds", "flops": "flops", "steps": "step"}
INTEGER_BUDGETS = ("tokens", "steps")
MOST_RUNS = 200
RACE_ID = re.compile(r"race-[0-9]{8}-[0-9]{6}-[a-z0-9]{4}", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """What every run may use: an axis of BUDGETS and how much of it."""

    axis: str
    amount: float

    @staticmethod
    def parse(text: str) -> Budget:
        """From "tokens=10000". Raises LabError."""
        axis, _, amount = text.partition("=")
        try:
            limit = float(amount.replace("_", "").replace(",", ""))
        except ValueError:
            limit = -1.0
        if axis not in BUDGETS or not 0 < limit < float("inf"):
            raise LabError(
                f"'{quote(text)}' is not a budget.",
                f"Write one of {', '.join(f'{name}=NUMBER' for name in BUDGETS)}.",
            )
        if axis in INTEGER_BUDGETS and not limit.is_integer():
            raise LabError(f"'{quote(text)}' is not a budget.", f"{axis} are counted in wholes.")
        return Budget(axis, limit)


def race_specs(
    value: dict[str, Any], names: list[str], budget: Budget | None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(a spec for each method, what a person should know). Raises SpecError.

    `value` may hold `methods`: {"lora": {"rank": 8, "learning_rate": 1e-3}}; its other keys are a
    spec's, and `method` is ignored. Where one method cannot pack, none packs, so that all
    see the same rows in the same order.
    """
    problems = _unknown(names)
    method_overrides = value.get("methods", {})
    if not isinstance(method_overrides, dict) or not all(
        isinstance(method_options, dict) for method_options in method_overrides.values()
    ):
        problems.append(
            Problem(
                "methods",
                f'must be an object such as {{"lora": {{}}}}, is {quote(method_overrides)}.',
            )
        )
        method_overrides = {}
    known = methods.names()
    problems += [
        Problem(f"methods.{quote(name)}", unknown_key(name, known))
        for name in method_overrides
        if name not in known
    ]
    for section in ("train", "data"):
        if not isinstance(value.get(section, {}), dict):
            problems.append(Problem(section, f"must be an object, is {quote(value[section])}."))
    if problems:
        raise SpecError(problems)
    notes = []
    cannot = [methods.get(name).title for name in names if not methods.get(name).can_pack]
    data = dict(value.get("data", {}))
    if cannot and data.get("packing", "auto") not in ("off", False):
        data["packing"] = "off"
        notes.append(f"Packing is off for all: {', '.join(cannot)} cannot train on packed rows.")
    specs = {}
    for name in names:
        options = {
            key: item
            for key, item in method_overrides.get(name, {}).items()
            if key != "learning_rate"
        }
        train = dict(value.get("train", {}))
        if "learning_rate" in method_overrides.get(name, {}):
            train["learning_rate"] = method_overrides[name]["learning_rate"]
        if budget is not None:
            train |= dict.fromkeys(BUDGETS.values())
            whole = budget.axis in INTEGER_BUDGETS
            train[BUDGETS[budget.axis]] = int(budget.amount) if whole else budget.amount
        shared = {key: item for key, item in value.items() if key not in ("methods", "method")}
        title = f"{value['name']} · {name}" if value.get("name") else f"race · {name}"
        specs[name] = copy.deepcopy(
            shared
            | {"name": title, "method": {"name": name, **options}, "data": data, "train": train}
        )
    return specs, notes


def _unknown(names: list[str]) -> list[Problem]:
    problems = []
    if len(names) < 2:
        problems.append(Problem("--methods", "a race needs two methods or more."))
    if len(set(names)) < len(names):
        problems.append(Problem("--methods", "a method is named twice."))
    for name in names:
        try:
            methods.get(name)
        except LabError as error:
            problems.append(Problem("--methods", str(error)))
    return problems


def check(specs: dict[str, dict[str, Any]], seeds: int) -> list[CheckedRun]:
    """A checked run for each seed and method, seed by seed. Raises SpecError with the problems
    of all methods, each under its method's name."""
    if not 1 <= seeds * len(specs) <= MOST_RUNS:
        raise LabError(
            f"{seeds} seeds of {len(specs)} methods are {seeds * len(specs)} runs.",
            f"A race has 1 to {MOST_RUNS}.",
        )
    problems: list[Problem] = []
    checked: dict[str, CheckedRun] = {}
    for name, spec in specs.items():
        try:
            checked[name] = same_commits.check(spec, next(iter(checked.values()), None))
        except SpecError as error:
            problems += [
                Problem(f"{name}: {problem.field}", problem.message) for problem in error.problems
            ]
    need = seeds * sum(run.forecast.disk.total for run in checked.values() if run.forecast.disk)
    home = next(folder for folder in [paths.home(), *paths.home().parents] if folder.exists())
    free = shutil.disk_usage(home).free
    if need > free:
        problems.append(
            Problem(
                "train.save_steps",
                f"not enough disk: all runs together may need {need / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free. Set train.save_steps to 0, or race fewer.",
            )
        )
    if problems:
        raise SpecError(problems)
    return [with_seed(run, place, seeds) for place in range(seeds) for run in checked.values()]


def with_seed(checked: CheckedRun, seed_index: int, seeds: int) -> CheckedRun:
    """The run with another seed; nothing else of it depends on that."""
    if seeds == 1:
        return checked
    spec = checked.spec
    seed = (spec.train.seed + seed_index) % 2**32
    requested = copy.deepcopy(checked.requested)
    requested.setdefault("train", {})["seed"] = seed
    spec = replace(
        spec,
        name=f"{spec.name} · seed {seed}"[: index.LONGEST_NAME],
        train=replace(spec.train, seed=seed),
    )
    return replace(checked, spec=spec, requested=requested)


def start(checked: list[CheckedRun]) -> tuple[str, list[RunDir]]:
    """(the race's id, its runs, in the queue). Raises LabError, and leaves no run behind then."""
    letters = "".join(random.SystemRandom().choices(paths.LETTERS, k=4))
    race = f"race-{time.strftime('%Y%m%d-%H%M%S')}-{letters}"
    runs: list[RunDir] = []
    try:
        for each in checked:
            runs.append(actions.create(each))
            index.update_labels(runs[-1], tags=race)
    except LabError:
        for run in runs:
            actions.delete(run)
        raise
    for run in runs:
        actions.submit(run)
    return race, runs


def runs_of(race: str) -> list[RunDir]:
    """The runs of a race in the order they were made in. Raises LabError if there are none."""
    if not RACE_ID.fullmatch(race):
        raise LabError(f"'{quote(race)}' is not a race.", "Write race-DATE-TIME-LETTERS.")
    entries = [entry for entry in index.entries() if race in entry.tags]
    if not entries:
        raise LabError(f"There is no run of {race}.", "`python -m lab runs` lists all runs.")
    return [paths.run_dir(entry.id) for entry in sorted(entries, key=lambda entry: entry.created)]


def axis_of(run: RunDir) -> str:
    """The axis on which a race is even: that of its runs' budget, steps if they have none."""
    train = part(read_object(run.spec), "train")
    limits = [axis for axis, key in BUDGETS.items() if train.get(key) is not None]
    return AXES[limits[0]] if limits else "step"


assert set(BUDGETS.values()) <= set(TrainSpec.__dataclass_fields__)
