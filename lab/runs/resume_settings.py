"""Which settings a resumed run may take, and the spec that its next attempt follows.

`spec.json` stays as it was written; what a person changes on resuming lies in `resume.json`, which
moves to `attempts/K/` with that attempt. Changes add up over attempts.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from lab import methods, optimizers, schema, spec_rules
from lab.atomic_files import read_object
from lab.errors import LabError, Problem, SpecError
from lab.formatting import quantity
from lab.hub import repository
from lab.methods.parts import compatibility
from lab.models import catalog, moved_base, weights_hash
from lab.paths import RunDir
from lab.runs import checkpoints, record_reader
from lab.runs.result import Result, read_result
from lab.schema import quote
from lab.spec import RunSpec, override
from lab.spec_sections import TrainSpec

# What may change without making it another run: where it ends, how fast it learns, what is kept.
CHANGEABLE = (
    "learning_rate",
    "lr_scheduler_type",
    "weight_decay",
    "max_grad_norm",
    "epochs",
    "max_steps",
    "max_tokens",
    "max_seconds",
    "max_flops",
    "batch_size",
    "gradient_accumulation_steps",
    "activation_checkpointing",
    "checkpointed_layers",
    "compile",
    "eval_steps",
    "save_steps",
    "sample_steps",
    "early_stopping",
    "keep_best",
    "keep_last",
    "report_to",
)
BUDGETS = {  # what ends a run, and what it has used of it
    "max_steps": "step",
    "max_tokens": "tokens",
    "max_seconds": "seconds",
    "max_flops": "flops",
}


def spec_of(run: RunDir) -> RunSpec:
    """The spec as it holds for the present attempt. Raises LabError if spec.json is damaged."""
    spec = RunSpec.of_run(run)
    # one from before commits stood in it goes on with the commit that its first attempt read
    commit = record_reader.last_event(run, weights_hash.EVENT).get("commit")
    spec = replace(spec, model=repository.at_commit(spec.model, commit))
    changes = changes_of(run)
    if not changes:
        return spec
    train = spec.to_json() | {"train": spec.to_json()["train"] | changes}
    return RunSpec.from_stored(train)


def changes_of(run: RunDir) -> dict[str, Any]:
    """Fields of `train` that were changed on resuming, this time or before."""
    settings = (read_object(run.resume) or {}).get("settings")
    if not isinstance(settings, dict):
        return {}
    named = schema.with_current_names(TrainSpec, settings)
    return {key: value for key, value in named.items() if key in CHANGEABLE}


def takes_incomplete(run: RunDir) -> bool:
    """Whether a person allowed this attempt to go on without optimizer or random state."""
    return (read_object(run.resume) or {}).get("incomplete") is True


def merged_changes(run: RunDir, settings: list[str]) -> dict[str, Any]:
    """The changes of `section.key=value` settings with the earlier ones.

    Raises SpecError with every setting that a resumed run cannot take.
    """
    now = spec_of(run)
    before = now.to_json()
    after = override(before, settings)
    problems: list[Problem] = []
    spec = RunSpec.parse(after, problems)
    for setting in settings:
        field = setting.partition("=")[0].strip()
        section, _, name = field.partition(".")
        if section != "train" or name not in CHANGEABLE:
            problems.append(
                Problem(
                    quote(field),
                    "cannot change when resuming. Start a new run, or change only: "
                    f"{', '.join(f'train.{name}' for name in CHANGEABLE)}.",
                )
            )
        elif after["train"].get(name) == "auto":
            message = "is auto; give an explicit value when resuming."
            problems.append(Problem(quote(field), message))
    rows = spec.train.batch_size * spec.train.gradient_accumulation_steps
    rows_before = now.train.batch_size * now.train.gradient_accumulation_steps
    if rows != rows_before:
        problems.append(
            Problem(
                "train.batch_size",
                f"x train.gradient_accumulation_steps is {rows}; it must stay "
                f"{quantity(rows_before, 'row')} a step, or the order of the data is lost.",
            )
        )
    method, rule = methods.get(spec.method["name"]), optimizers.get(spec.train.optimizer)
    problems += [Problem(*refusal) for refusal in compatibility.refusals(method, spec)]
    problems += rule.problems(spec.train, on_gpu=True)  # the device was looked at at the start
    changed = {setting.partition("=")[0].strip() for setting in settings}
    steps = spec_rules.RunFacts(max_steps=spec.train.max_steps)
    problems += [
        Problem(rule.field, spec_rules.explanation(rule, spec))
        for rule in spec_rules.broken(spec, steps)
        if rule.refuses and changed & {rule.field, *rule.others}
    ]
    if problems:
        raise SpecError(problems)
    changes = {
        name: after["train"][name]
        for name in CHANGEABLE
        if after["train"][name] != before["train"][name]
    }
    return changes_of(run) | changes


def lengthened(run: RunDir, changes: dict[str, Any]) -> None:
    """Raises LabError unless these changes make a finished run longer than it was, and it has a
    checkpoint to go on from."""
    if not checkpoints.listing(run.checkpoints):
        raise LabError(
            f"{run.id} is done, and no checkpoint is left to continue from.",
            'Continue from its result in a new run: "Train again" on the Monitor page, or '
            f"python -m lab start SPEC.json --set init_from_run=run:{run.id}",
        )
    train = RunSpec.of_run(run).to_json()["train"] | changes
    summary = (read_result(run) or Result()).summary
    limits = {name: train[name] for name in BUDGETS if train[name] is not None}
    problems = [
        Problem(
            f"train.{name}",
            f"is {quote(limit)}, and the run has used {used:,.10g} already: give more.",
        )
        for name, limit in limits.items()
        if limit <= (used := getattr(summary, BUDGETS[name]) or 0)
    ]
    if not limits:
        rows = record_reader.last_event(run, "data").get("train_rows", 0)
        per_step = train["batch_size"] * train["gradient_accumulation_steps"]
        steps = math.ceil(max(1, math.ceil(train["epochs"] * rows)) / per_step)
        if steps <= (used := summary.step or 0):
            problem = (
                f"is {quote(train['epochs'])}, {quantity(steps, 'step')}, and the run "
                f"has made {used:,.0f}"
            )
            problems.append(Problem("train.epochs", f"{problem} already: give more."))
    if problems:
        raise SpecError(problems, "The run was not resumed, it is done")


def check_base(run: RunDir) -> None:
    """Raises LabError if the base is not the one that the run was begun on, where that takes no
    longer than a few seconds to tell; the worker looks in any case."""
    recorded = record_reader.last_event(run, weights_hash.EVENT)
    model = moved_base.model_of(RunSpec.of_run(run).model, recorded)
    if not recorded or catalog.local_folder(model) is None:
        return
    base = weights_hash.identify_quickly(catalog.resolve(model))
    if base is not None:
        weights_hash.check(recorded, base, run.id)


def describe_changes(run: RunDir) -> str:
    """What this attempt does otherwise than the spec says; empty if nothing."""
    stored = RunSpec.of_run(run).to_json()["train"]
    changes = changes_of(run)
    words = ", ".join(
        f"train.{name} {quote(value)} (was {quote(stored[name])})"
        for name, value in changes.items()
    )
    if {"epochs", *BUDGETS} & set(changes) and stored["lr_scheduler_type"] != "constant":
        words += "; the learning rate follows its schedule over the new length"
    return words
