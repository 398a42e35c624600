"""Check a spec against its model, data and machine, and resolve every `auto`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

from lab import methods, optimizers, spec_rules
from lab.checked_run import CheckedRun, CheckResult
from lab.data import catalog as datasets
from lab.data import rendering
from lab.data.dataset_stats import dataset_stats
from lab.errors import LabError, Problem
from lab.forecast import compile_choice, memory_savers, runtime_estimate
from lab.forecast import estimator as memory
from lab.forecast.estimator import StepFails
from lab.forecast.resolve import fit_method, resolve
from lab.forecast.runtime_estimate import TargetDevice
from lab.forecast.target_device import this_machine, with_reached
from lab.forecasts import DatasetStats, Forecast, Saving
from lab.methods import Context
from lab.methods.parts import compatibility
from lab.models import catalog as models
from lab.models import fit, hub, weights
from lab.models.context_length import context_length
from lab.models.empty_model import meta_model
from lab.preflight import disk_check, initial_weights, memory_check
from lab.schema import quote
from lab.spec import RunSpec, without_packing
from lab.stages import stage


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
        spec = _gather(problems, "model", lambda: pin_model(spec, moved), spec)
        wrong = {problem.field for problem in problems}
    # the whole device: what other runs hold now, the queue waits for
    device = this_machine(on_gpu=torch.cuda.is_available(), all_memory=True)
    resolved = resolve(spec, device.has_bf16)
    tokenizer, model = None, None
    if "model" not in wrong:
        tokenizer, model = _gather(problems, "model", lambda: _model(resolved), (None, None))
    stats = DatasetStats()
    if tokenizer is not None and not any(field.split(".")[0] == "method" for field in wrong):
        methods.get(spec.method["name"]).extend_tokenizer(tokenizer, spec.method_config)
    if not wrong & {"data", "data.dataset", "data.format"}:
        stats = _gather(problems, "data.dataset", lambda: dataset_stats(resolved, tokenizer), stats)
    if not wrong & {"model", "method", "method.name", "init_from_run"}:
        problems.extend(_gather(problems, "model", lambda: initial_weights.problems(resolved), []))
    if model is not None and not any(field.split(".")[0] == "method" for field in wrong):
        resolved, notes = fit_method(resolved, model)
        stats = replace(stats, warnings=(*stats.warnings, *notes))
    if not {"data", "train"} & wrong:
        idle, warnings = spec_rules.problems(
            spec, _run_facts(resolved, stats, tokenizer), frozenset(wrong)
        )
        problems.extend(idle)
        stats = replace(stats, warnings=(*moved, *stats.warnings, *warnings))
    if model is not None:
        check_fit(resolved, model, tokenizer, problems, wrong)
    forecast = None
    if model is not None and not problems:
        with stage("predict"):
            resolved, forecast = _estimate(
                resolved, spec, model.config, tokenizer, stats, device, problems
            )
    if forecast is not None and not problems:
        forecast = replace(forecast, download=hub.download_size(models.resolve(spec.model)))
        problems.extend(disk_check.problems(forecast))
    if problems or forecast is None:
        return CheckResult(tuple(problems))
    why = forecast.memory.trace_error
    if why:
        warning = f"The memory is not known: the step cannot be traced ({why})."
        stats = replace(stats, warnings=(*stats.warnings, warning))
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
    return CheckResult(run=CheckedRun(final, value, stats, forecast))


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
        course = runtime_estimate.course(without_packing(spec), stats, 1.0)
        steps = None if course is None else math.ceil(1.25 * course.steps) + 1
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
        _gather(problems, f"data.{name}", check_value, None)
        if len(problems) > before:
            spec = replace(spec, data=replace(spec.data, **{name: default}))
    return spec


def _date(spec: RunSpec, tokenizer: Any) -> str | None:
    """The date that the run's template writes, from now on the same; None if it writes none."""
    if spec.data.template_date or not rendering.reads_date(tokenizer):
        return spec.data.template_date
    return date.today().isoformat()


def fixes(value: dict[str, Any]) -> tuple[int | None, list[Saving]]:
    """(the predicted peak, what makes a resolved spec smaller, the largest saving first); None and
    nothing where the spec has problems. What saves nothing is left out."""
    import torch

    now = check(regardless(value)).run
    if now is None:
        return None, []
    peak = now.forecast.memory.peak_bytes
    spec = now.spec.to_json()
    savings = []
    for saver in memory_savers.candidates(spec, on_gpu=torch.cuda.is_available()):
        changed = check(regardless(saver.apply(spec))).run
        if changed is not None and changed.forecast.memory.peak_bytes < peak:
            less = changed.forecast.memory.peak_bytes
            savings.append(Saving(saver.title, saver.changes, saver.keeps_batch, less, peak - less))
    savings.sort(key=lambda saving: -saving.saves_bytes)
    return peak, savings


def regardless(value: dict[str, Any]) -> dict[str, Any]:
    """The spec without the question whether it fits."""
    return value | {"hardware": {**(value.get("hardware") or {}), "ignore_memory": True}}


def not_applicable(method: Any, config: Any, error: ValueError) -> Problem:
    """What a library says of a method on a model, and what to do where that is known."""
    said = f"{method.title} cannot be applied: {error}"
    # PEFT's experts, whose weights are no layers
    if "dropout" in said and getattr(config, "dropout", None):
        return Problem("method.dropout", f"{said.rstrip('.')}. Set it to 0 for this model.")
    if isinstance(error, StepFails):
        return Problem("method", f"{method.title} does not work with this model: {error}")
    return Problem("method", said)


def _gather(problems: list[Problem], field: str, ask: Callable[[], Any], otherwise: Any) -> Any:
    """`ask()`, or `otherwise` with its LabError noted as a problem of `field`."""
    try:
        return ask()
    except LabError as error:
        problems.append(Problem(field, str(error)))
        return otherwise


def _model(spec: RunSpec) -> tuple[Any, Any]:
    source = models.resolve(spec.model)
    with stage("model"):
        config = weights.load_config(source)
    if any(getattr(c, "quantization_config", None) for c in (config, config.get_text_config())):
        raise LabError(
            f"The weights of '{spec.model}' are quantised already{_quantised_by(config)}, and "
            "cannot be trained as they are.",
            "Choose the original model: the page of a quantised one names it as its base. QLoRA "
            "and the 8-bit base quantise it as it is loaded.",
        )
    with stage("model"):
        model = meta_model(config)
    with stage("tokenizer"):
        tokenizer = weights.load_tokenizer(source)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise LabError(
            f"The tokenizer of '{spec.model}' knows {len(tokenizer):,} tokens, its model only "
            f"{rows:,}.",
            "They do not belong together; check the folder.",
        )
    fit.check(config, hub.stored_tensors(source), source.id)
    return tokenizer, model


def _quantised_by(config: Any) -> str:
    stored = getattr(config.get_text_config(), "quantization_config", None)
    stored = stored or getattr(config, "quantization_config", None)
    kind = stored.get("quant_method") if isinstance(stored, dict) else None
    return f" ({quote(kind)})" if isinstance(kind, str) else ""


def check_fit(
    spec: RunSpec,
    model: Any,
    tokenizer: Any,
    problems: list[Problem],
    wrong: set[str],
    on_gpu: bool | None = None,
) -> None:
    """What the parts refuse of each other: the method of the model, the model of the lengths."""
    import torch

    method = methods.get(spec.method["name"])
    if not any(field.split(".")[0] == "method" for field in wrong):
        context = Context(spec, tokenizer)
        with stage("method"):
            problems.extend(
                _gather(
                    problems,
                    "method.name",
                    lambda: method.check(model, spec.method_config, context),
                    [],
                )
            )
    problems.extend(
        Problem(place, message)
        for place, message in compatibility.refusals(method, spec)
        if not wrong & {place, place.split(".")[0]}
    )
    if "data.max_length" not in wrong:
        longest = context_length(model.config)
        # a method with a problem of its own may say nonsense about its tokens
        is_known = not any(field.split(".")[0] == "method" for field in wrong)
        before = method.virtual_tokens(spec.method_config)[0] if is_known else 0
        if longest and spec.data.max_length + before > longest:
            own = f"; {before:,} are the method's" if before else ""
            problems.append(
                Problem(
                    "data.max_length",
                    f"is {spec.data.max_length:,}; the model reads at most {longest:,} "
                    f"tokens{own}.",
                )
            )
    if "train" not in wrong:
        rule = optimizers.get(spec.train.optimizer)
        problems.extend(
            problem
            for problem in rule.problems(
                spec.train, on_gpu=torch.cuda.is_available() if on_gpu is None else on_gpu
            )
            if problem.field not in wrong
        )


def _estimate(
    spec: RunSpec,
    asked: RunSpec,
    config: Any,
    tokenizer: Any,
    stats: DatasetStats,
    device: TargetDevice,
    problems: list[Problem],
) -> tuple[RunSpec, Forecast | None]:
    """Count, hold memory and disk against the need, and predict the time."""
    method, options = methods.get(spec.method["name"]), spec.method_config
    try:
        profile = memory.measure(config, spec, method, tokenizer)
    except ValueError as error:  # a library refuses the combination in its own words
        problems.append(not_applicable(method, options, error))
        return spec, None
    if spec.train.loss_implementation == "fused" and not profile.head_is_plain:
        problems.append(
            Problem(
                "train.loss_implementation",
                "the fused loss works on a plain head, and the method changes the head. Set plain, "
                "or leave the head out of method.target_modules.",
            )
        )
    sizes, bits = profile.sizes, profile.bits
    costs = profile.costs[memory.loss_kind(config, spec)]
    device = with_reached(device)
    way, _ = compile_choice.choose(asked, spec, method, costs, sizes, device, stats, bits)
    spec = replace(spec, train=replace(spec.train, compile=way))
    try:
        spec, forecast = memory_check.admit(spec, asked, config, method, sizes, device, problems)
    except StepFails as error:
        problems.append(not_applicable(method, options, error))
        return spec, None
    runtime = runtime_estimate.pace(
        spec, costs, sizes, device, stats, bits, forecast.memory.launches
    )
    return spec, replace(forecast, runtime=runtime)
