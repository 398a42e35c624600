"""Check a spec against its model, data and machine, and resolve every `auto`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

from lab import methods, spec_rules
from lab.checked_run import CheckedRun, CheckResult
from lab.data import catalog as datasets
from lab.data import rendering
from lab.data.dataset_stats import dataset_stats
from lab.errors import LabError, Problem, SpecError
from lab.forecast.forecaster import forecast
from lab.forecast.memory_forecast import TraceOptions
from lab.forecast.resolve import resolve
from lab.forecast.runtime_estimate import training_volume
from lab.forecast.target_device import this_machine
from lab.forecasts import DatasetStats
from lab.models import catalog as models
from lab.models import hub
from lab.models.base_model import load_base
from lab.preflight import combination, disk_check, initial_weights, memory_check
from lab.spec import RunSpec, without_packing
from lab.stages import stage
from lab.train import trackers


def check(value: Any) -> CheckResult:
    """The run that would start, or all problems at once: what depends on a part that is itself
    wrong is left out, the rest is looked at."""
    import torch

    problems: list[Problem] = []
    spec = RunSpec.parse(value, problems)
    spec = _check_template_settings(spec, problems)
    # a field with a problem holds its default, so the others can still be looked at
    wrong = {problem.field for problem in problems}
    moved: list[str] = []
    if "model" not in wrong:
        spec = _collect_problem(problems, "model", lambda: pin_model(spec, moved), spec)
        wrong = {problem.field for problem in problems}
    # the whole device: what other runs hold now, the queue waits for
    device = this_machine(on_gpu=torch.cuda.is_available(), all_memory=True)
    resolution = resolve(spec, device.has_bf16)
    base = None
    if "model" not in wrong:
        base = _collect_problem(problems, "model", lambda: load_base(spec.model), None)
    tokenizer = base and base.tokenizer
    stats = DatasetStats()
    if tokenizer is not None and not combination.is_method_wrong(wrong):
        methods.get(spec.method["name"]).extend_tokenizer(tokenizer, spec.method_config)
    if not wrong & {"data", "data.dataset", "data.format"}:
        stats = _collect_problem(
            problems, "data.dataset", lambda: dataset_stats(resolution.spec, tokenizer), stats
        )
    if not wrong & {"model", "method", "method.name", "init_from_run"}:
        problems.extend(
            _collect_problem(
                problems, "model", lambda: initial_weights.problems(resolution.spec), []
            )
        )
    if base is not None and not combination.is_method_wrong(wrong):
        resolution = resolution.fitted_to(base.model)
    resolved = resolution.spec
    warnings = [*moved, *stats.warnings, *resolution.notes]
    if not {"data", "train"} & wrong:
        facts = _run_facts(resolved, stats, tokenizer)
        without_effect, more = spec_rules.problems(spec, facts, frozenset(wrong))
        problems.extend(without_effect)
        warnings += more
        problems.extend(trackers.problems(spec))
    if base is not None:
        problems.extend(combination.problems(resolved, base, wrong, on_gpu=device.on_gpu))
    if base is None or problems:
        return CheckResult(tuple(problems))
    options = TraceOptions(device.on_gpu, resolved.data.packing == "on", traced=device.on_gpu)
    with stage("predict"):
        try:
            resolved, predicted = forecast(
                resolution, base.config, device, options, stats, tokenizer
            )
        except SpecError as error:
            return CheckResult(tuple(error.problems))
        problems.extend(combination.head_problems(resolved, base))
        problems.extend(memory_check.problems(resolved, predicted.memory, base, device))
    if not problems:
        problems.extend(disk_check.problems(predicted))
    if problems:
        return CheckResult(tuple(problems))
    if why := predicted.memory.trace_error:
        warnings.append(f"The memory is not known: the step cannot be traced ({why}).")
    final = replace(
        resolved,
        model=models.resolve(spec.model).id,
        data=replace(
            resolved.data,
            dataset=stats.dataset,
            eval_dataset=datasets.pinned(resolved.data.eval_dataset),
            general_dataset=datasets.pinned(resolved.data.general_dataset),
            system_prompt=stats.system_prompt,
            template_date=_date(resolved, tokenizer),
        ),
    )
    stats = replace(stats, warnings=tuple(warnings))
    return CheckResult(run=CheckedRun(final, value, stats, predicted))


def pin_model(spec: RunSpec, moved: list[str]) -> RunSpec:
    """The spec with the commit of its model, if that is one of the hub. A run that begins with the
    result of another one takes that one's commit; where its branch has moved on meanwhile, `moved`
    says so. Raises LabError."""
    source = models.resolve(spec.model)
    begun_on = initial_weights.base_of(spec)
    if begun_on is not None and begun_on.location == source.location and not source.revision:
        moved += filter(None, [hub.moved_on(begun_on, spec.model)])
        source = begun_on
    return replace(spec, model=hub.pin(source).id)


def _run_facts(spec: RunSpec, stats: DatasetStats, tokenizer: Any) -> spec_rules.RunFacts:
    """What the rules may know of a run: its steps at most, and of what its rows are."""
    train, steps = spec.train, spec.train.max_steps
    if all(getattr(train, name) is None for name in spec_rules.BUDGETS):
        # no row holds fewer than one sequence; the rest is for what a sample cannot tell
        volume = training_volume(without_packing(spec), stats, 1.0)
        steps = None if volume is None else math.ceil(1.25 * volume.steps) + 1
    # chosen by now; of several named ones, a row with tools may use another than the rest
    template = str(tokenizer.chat_template) if stats.has_chats and tokenizer is not None else None
    return spec_rules.RunFacts(steps, stats.has_chats, template)


def _check_template_settings(spec: RunSpec, problems: list[Problem]) -> RunSpec:
    """The spec with the default in place of what no template can be given."""
    checks: dict[str, tuple[Callable[[], None], Any]] = {
        "template_args": (lambda: rendering.check_args(spec.data.template_args), {}),
        "template_date": (lambda: rendering.check_date(spec.data.template_date), None),
    }
    for name, (check_value, default) in checks.items():
        before = len(problems)
        _collect_problem(problems, f"data.{name}", check_value, None)
        if len(problems) > before:
            spec = replace(spec, data=replace(spec.data, **{name: default}))
    return spec


def _date(spec: RunSpec, tokenizer: Any) -> str | None:
    """The date that the run's template writes, from now on the same; None if it writes none."""
    if spec.data.template_date or not rendering.reads_date(tokenizer):
        return spec.data.template_date
    return date.today().isoformat()


def _collect_problem(
    problems: list[Problem], field: str, ask: Callable[[], Any], otherwise: Any
) -> Any:
    """`ask()`, or `otherwise` with its LabError noted as a problem of `field`."""
    try:
        return ask()
    except LabError as error:
        problems.append(Problem(field, str(error)))
        return otherwise
