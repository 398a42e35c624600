"""What the parts of a spec refuse of each other: the method of the model, the model of the lengths,
the optimizer of the device."""

from __future__ import annotations

from lab import methods, optimizers
from lab.errors import LabError, Problem
from lab.forecast.model_profile import profile_model
from lab.methods import Context
from lab.methods.parts import compatibility
from lab.models.base_model import BaseModel
from lab.models.context_length import context_length
from lab.spec import RunSpec
from lab.stages import stage


def problems(spec: RunSpec, base: BaseModel, wrong: set[str], *, on_gpu: bool) -> list[Problem]:
    """Of a resolved spec, whose fields in `wrong` have a problem already and are passed over."""
    return [
        *_of_method(spec, base, wrong),
        *(
            Problem(field, message)
            for field, message in compatibility.refusals(methods.get(spec.method["name"]), spec)
            if not wrong & {field, field.split(".")[0]}
        ),
        *_of_length(spec, base, wrong),
        *_of_optimizer(spec, wrong, on_gpu),
    ]


def is_method_wrong(wrong: set[str]) -> bool:
    return any(field.split(".")[0] == "method" for field in wrong)


def _of_method(spec: RunSpec, base: BaseModel, wrong: set[str]) -> list[Problem]:
    if is_method_wrong(wrong):
        return []
    method, context = methods.get(spec.method["name"]), Context(spec, base.tokenizer)
    with stage("method"):
        try:
            return list(method.check(base.model, spec.method_config, context))
        except LabError as error:
            return [Problem("method.name", str(error))]


def _of_length(spec: RunSpec, base: BaseModel, wrong: set[str]) -> list[Problem]:
    longest = context_length(base.config)
    if "data.max_length" in wrong or not longest:
        return []
    method = methods.get(spec.method["name"])
    # a method with a problem of its own may say nonsense about its tokens
    before = 0 if is_method_wrong(wrong) else method.virtual_tokens(spec.method_config)[0]
    if spec.data.max_length + before <= longest:
        return []
    virtual = f"; {before:,} are the method's" if before else ""
    message = f"is {spec.data.max_length:,}; the model reads at most {longest:,} tokens{virtual}."
    return [Problem("data.max_length", message)]


def _of_optimizer(spec: RunSpec, wrong: set[str], on_gpu: bool) -> list[Problem]:
    if "train" in wrong:
        return []
    rule = optimizers.get(spec.train.optimizer)
    return [
        problem
        for problem in rule.problems(spec.train, on_gpu=on_gpu)
        if problem.field not in wrong
    ]


def head_problems(spec: RunSpec, base: BaseModel) -> list[Problem]:
    """Of the fused loss, which works on a plain head only."""
    is_fused = spec.train.loss_implementation == "fused"
    if not is_fused or profile_model(base.config, spec, base.tokenizer).head_is_plain:
        return []
    message = (
        "the fused loss works on a plain head, and the method changes the head. Set plain, "
        "or leave the head out of method.target_modules."
    )
    return [Problem("train.loss_implementation", message)]
