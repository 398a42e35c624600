"""The same data and budget for several methods: one spec becomes a run for each method and seed.

What a race is; `race_start.py` checks it, adds the ladder of learning rates and queues its runs,
`race_file.py` keeps it. Its id is a tag on each of its runs.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lab import methods, paths
from lab.atomic_files import part, read_object
from lab.errors import LabError, Problem, SpecError
from lab.paths import RunDir
from lab.runs import index, ladder
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
MAX_CONTESTANTS = 12
MAX_RUNS = 200
MAX_CONTESTANT_CHARS = 60  # characters of a name
SETTING = re.compile(r"(method|train|data)\.(?!name$)[a-z_0-9]+", re.ASCII)
# keys of a race's file that are no spec's
OF_THE_RACE = ("methods", "method", "contestants")
PROBE_TAG = "probe"  # of the short runs that choose a learning rate
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


@dataclass(frozen=True)
class RaceContestant:
    """A way to train: a method, and what of the race's spec it has otherwise, by dotted keys such
    as `method.rank` or `train.learning_rate`. `name` is unique within the race."""

    name: str = ""
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def contestants(value: dict[str, Any], names: list[str]) -> list[RaceContestant]:
    """Those that `value` lists under `contestants`, else one for each method of `names` with its
    options under `methods`: {"lora": {"rank": 8, "learning_rate": 1e-3}}. Raises SpecError."""
    listed = value.get("contestants")
    if listed is not None and not names:
        return _listed(listed)
    problems = _unknown(names)
    overrides = value.get("methods", {})
    if not isinstance(overrides, dict) or not all(
        isinstance(method_options, dict) for method_options in overrides.values()
    ):
        problems.append(
            Problem(
                "methods", f'must be an object such as {{"lora": {{}}}}, is {quote(overrides)}.'
            )
        )
        overrides = {}
    known = methods.names()
    problems += [
        Problem(f"methods.{quote(name)}", unknown_key(name, known))
        for name in overrides
        if name not in known
    ]
    if problems:
        raise SpecError(problems)
    return [
        RaceContestant(
            name,
            name,
            {
                "train.learning_rate" if key == "learning_rate" else f"method.{key}": option
                for key, option in overrides.get(name, {}).items()
            },
        )
        for name in names
    ]


def _listed(listed: Any) -> list[RaceContestant]:
    """The contestants of a race's file. Raises SpecError."""
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise SpecError([Problem("contestants", f"must be a list of objects, is {quote(listed)}.")])
    problems, result = [], []
    for position, each in enumerate(listed):
        settings = each.get("settings", {})
        if not isinstance(settings, dict) or not all(SETTING.fullmatch(key) for key in settings):
            problems.append(
                Problem(
                    f"contestants.{position}.settings",
                    'must be an object of dotted keys such as {"method.rank": 8}, '
                    f"is {quote(settings)}.",
                )
            )
            settings = {}
        name = str(each.get("name") or each.get("method", ""))
        result.append(
            RaceContestant(name[:MAX_CONTESTANT_CHARS], str(each.get("method", "")), settings)
        )
    problems += _unknown([each.method for each in result], [each.name for each in result])
    if problems:
        raise SpecError(problems)
    return result


def contestant_specs(
    value: dict[str, Any], racing: list[RaceContestant], budget: Budget | None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(a spec for each contestant by its name, what a person should know). Raises SpecError.

    The keys of `value` are a spec's; its `method` is ignored. Where one method cannot pack, none
    packs, so that all see the same rows in the same order.
    """
    problems = [
        Problem(section, f"must be an object, got {quote(value[section])}.")
        for section in ("train", "data")
        if not isinstance(value.get(section, {}), dict)
    ]
    if problems:
        raise SpecError(problems)
    notes = []
    titles = {each.method: methods.get(each.method) for each in racing}
    cannot = [method.title for method in titles.values() if not method.can_pack]
    data = dict(value.get("data", {}))
    if cannot and data.get("packing", "auto") not in ("off", False):
        data["packing"] = "off"
        notes.append(f"Packing is off for all: {', '.join(cannot)} cannot train on packed rows.")
    train = dict(value.get("train", {}))
    if budget is not None:
        train |= dict.fromkeys(BUDGETS.values())
        whole = budget.axis in INTEGER_BUDGETS
        train[BUDGETS[budget.axis]] = int(budget.amount) if whole else budget.amount
    shared = {key: item for key, item in value.items() if key not in OF_THE_RACE}
    specs = {}
    for each in racing:
        title = f"{value['name']} · {each.name}" if value.get("name") else f"race · {each.name}"
        spec = copy.deepcopy(
            shared
            | {"name": title, "method": {"name": each.method}, "data": data, "train": dict(train)}
        )
        for key, setting in each.settings.items():
            section, _, name = key.partition(".")
            spec[section][name] = setting
        specs[each.name] = spec
    return specs, notes


def _unknown(names: list[str], titles: list[str] | None = None) -> list[Problem]:
    titles, problems = titles if titles is not None else names, []
    if len(names) < 2:
        problems.append(Problem("--methods", "a race needs two methods or more."))
    if len(names) > MAX_CONTESTANTS:
        problems.append(
            Problem("--methods", f"a race has at most {MAX_CONTESTANTS}, not {len(names)}.")
        )
    if len(set(titles)) < len(titles):
        problems.append(Problem("--methods", "a method is named twice."))
    for name in dict.fromkeys(names):
        try:
            methods.get(name)
        except LabError as error:
            problems.append(Problem("--methods", str(error)))
    return problems


def runs_of(race: str) -> list[RunDir]:
    """The runs that a race compares, in the order they were made in: without the short ones of its
    ladder, and without what these have made needless. Raises LabError if there are none."""
    if not RACE_ID.fullmatch(race):
        raise LabError(f"'{quote(race)}' is not a race.", "Write race-DATE-TIME-LETTERS.")
    entries = [entry for entry in index.entries() if race in entry.tags]
    if not entries:
        raise LabError(f"There is no run of {race}.", "'python -m lab runs' lists all runs.")
    entries.sort(key=lambda entry: entry.created)
    runs = [paths.run_dir(entry.id) for entry in entries if PROBE_TAG not in entry.tags]
    return [run for run in runs if not ladder.is_needless(run)]


def axis_of(run: RunDir) -> str:
    """The axis on which a race is even: that of its runs' budget, steps if they have none."""
    train = part(read_object(run.spec), "train")
    limits = [axis for axis, key in BUDGETS.items() if train.get(key) is not None]
    return AXES[limits[0]] if limits else "step"


assert set(BUDGETS.values()) <= set(TrainSpec.__dataclass_fields__)
