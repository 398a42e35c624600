"""Settings that have no effect beside the others: one table of rules.

A rule looks at a field only where its value is not the default: what nobody asked for is never
refused. A person who sets such a field expects something of it, so the run is refused, with the
reason and the way out; where nothing is lost, the check warns.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab import methods
from lab.errors import Problem
from lab.schema import quote
from lab.spec import RunSpec

EVALUATIONS = 10  # of a run, where the spec leaves them open
BUDGETS = ("max_steps", "max_tokens", "max_seconds", "max_flops")


@dataclass(frozen=True)
class RunFacts:
    """What is known of the run beside its spec; None where it is not."""

    max_steps: int | None = None  # it has no more optimizer steps
    has_chats: bool | None = None  # else its rows are plain text
    template: str | None = None  # the source of its chat template


@dataclass(frozen=True)
class SpecRule:
    """`field` has no effect where `is_idle`; `others` are the fields that decide it."""

    field: str
    others: tuple[str, ...]
    is_idle: Callable[[RunSpec, RunFacts], bool]
    reason: str
    way_out: str
    refuses: bool = True


def has_held_out(spec: RunSpec, facts: RunFacts) -> bool:
    return spec.data.eval_dataset is not None or spec.data.eval_fraction > 0


def no_held_out(spec: RunSpec, facts: RunFacts) -> bool:
    return not has_held_out(spec, facts)


def evaluations(spec: RunSpec, facts: RunFacts) -> int | None:
    """How often the run is evaluated at most, the end included; None if that is not known."""
    every, steps = spec.train.eval_steps, facts.max_steps
    if every == 0:
        return 1
    if every is None:
        return EVALUATIONS if steps is None else min(EVALUATIONS, steps)
    return None if steps is None else math.ceil(steps / every)


def never_stalls(patience: int, spec: RunSpec, facts: RunFacts) -> bool:
    """Whether no evaluation before the last one can be the `patience`-th without improvement: the
    first one always improves."""
    count = evaluations(spec, facts)
    return has_held_out(spec, facts) and count is not None and patience > count - 2


def beyond(field: str) -> Callable[[RunSpec, RunFacts], bool]:
    """Whether an interval in steps is longer than the run."""

    def is_idle(spec: RunSpec, facts: RunFacts) -> bool:
        return facts.max_steps is not None and value_of(spec, field) > facts.max_steps

    return is_idle


def is_text(spec: RunSpec, facts: RunFacts) -> bool:
    return spec.data.objective == "pretraining" or facts.has_chats is False


def reads(facts: RunFacts, name: str) -> bool:
    """Whether the chat template may read a variable of this name."""
    return facts.template is None or re.search(rf"\b{name}\b", facts.template) is not None


OPTIONAL_EVALUATION = "Raise data.eval_fraction, name data.eval_dataset, or leave it out."
FOR_CHATS = "Leave it out, or give chats."

RULES = (
    # -- what needs evaluations
    SpecRule(
        "train.early_stopping", ("data.eval_fraction", "data.eval_dataset"), no_held_out,
        "no rows are held out, so there is no evaluation loss to stop by", OPTIONAL_EVALUATION,
    ),
    SpecRule(
        "train.early_stopping", ("train.eval_steps", "train.max_steps"),
        lambda spec, facts: never_stalls(spec.train.early_stopping or 0, spec, facts),
        "the run has too few evaluations for so many without improvement before its end",
        "Lower it, or evaluate more often (train.eval_steps).",
    ),
    SpecRule(
        "train.eval_steps", ("data.eval_fraction", "data.eval_dataset"),
        lambda spec, facts: bool(spec.train.eval_steps) and no_held_out(spec, facts),
        "no rows are held out to evaluate on", OPTIONAL_EVALUATION,
    ),
    SpecRule(
        "train.eval_steps", ("train.max_steps",), beyond("train.eval_steps"),
        "the run has fewer steps, so it is evaluated only at its end", "Lower it.", refuses=False,
    ),
    SpecRule(
        "train.keep_best", ("data.eval_fraction", "data.eval_dataset"),
        lambda spec, facts: spec.train.keep_best > 0 and no_held_out(spec, facts),
        "no rows are held out, so no checkpoint is known to be better than another",
        "Raise data.eval_fraction, name data.eval_dataset, or set train.keep_last.",
    ),
    SpecRule(
        "train.keep_best", ("train.save_steps",),
        lambda spec, facts: spec.train.keep_best > 0 and spec.train.save_steps == 0,
        "train.save_steps is 0, so a checkpoint is written only when the run is stopped",
        "Set train.save_steps.", refuses=False,
    ),
    SpecRule(
        "train.keep_last", ("train.save_steps",),
        lambda spec, facts: spec.train.save_steps == 0,
        "train.save_steps is 0, so a checkpoint is written only when the run is stopped",
        "Set train.save_steps.", refuses=False,
    ),
    SpecRule(
        "data.eval_fraction", ("data.eval_dataset",),
        lambda spec, facts: spec.data.eval_fraction > 0 and spec.data.eval_dataset is not None,
        "data.eval_dataset names the rows that are evaluated", "Set one of the two.", refuses=False,
    ),
    # -- intervals and lengths of the run
    SpecRule(
        "train.save_steps", ("train.max_steps",), beyond("train.save_steps"),
        "the run has fewer steps, so it writes no checkpoint on the way", "Lower it.",
        refuses=False,
    ),
    SpecRule(
        "train.sample_steps", ("train.max_steps",), beyond("train.sample_steps"),
        "the run has fewer steps, so there are samples only at its start and end", "Lower it.",
        refuses=False,
    ),
    SpecRule(
        "train.warmup_ratio", ("train.max_steps",),
        lambda spec, facts: 0 < spec.train.warmup_ratio * (facts.max_steps or math.inf) <= 0.5,
        "it is less than half a step of this run, so the rate begins at its peak", "Raise it.",
        refuses=False,
    ),
    SpecRule(
        "train.epochs", tuple(f"train.{name}" for name in BUDGETS),
        lambda spec, facts: any(getattr(spec.train, name) is not None for name in BUDGETS),
        "another limit is set, which alone ends the run", "Leave one out.", refuses=False,
    ),
    # -- the optimizer and memory
    SpecRule(
        "train.weight_decay", (),
        lambda spec, facts: spec.train.weight_decay > 0
        and methods.get(spec.method["name"]).trains_only_vectors,
        "vectors do not decay, and the method trains nothing else", "Leave it out.", refuses=False,
    ),
    SpecRule(
        "train.momentum", ("train.optimizer",),
        lambda spec, facts: not spec.train.optimizer.startswith("sgd"),
        "only SGD has a momentum of its own to set", "Choose sgd, or leave it out.",
    ),
    SpecRule(
        "train.checkpointed_layers", ("train.activation_checkpointing",),
        lambda spec, facts: spec.train.activation_checkpointing == "off",
        "activation checkpointing is off", "Set train.activation_checkpointing to on.",
    ),
    # -- data
    SpecRule(
        "data.group_by_length", ("data.packing",),
        lambda spec, facts: spec.data.group_by_length == "on" and spec.data.packing == "on",
        "packed rows all have the same length", "Set data.packing to off, or leave it out.",
    ),
    SpecRule(
        "data.group_by_length", ("train.batch_size",),
        lambda spec, facts: spec.data.group_by_length == "on" and spec.train.batch_size == 1,
        "a batch of one row has no padding", "Raise train.batch_size.", refuses=False,
    ),
    SpecRule(
        "data.general_dataset", ("data.general_fraction",),
        lambda spec, facts: spec.data.general_fraction == 0,
        "no general rows are mixed in", "Set data.general_fraction, such as 0.05.",
    ),
    SpecRule(
        "data.truncation", ("data.objective",), is_text,
        "plain text is split at the sequence length, not truncated", FOR_CHATS,
    ),
    SpecRule(
        "data.system_prompt", ("data.objective",),
        lambda spec, facts: bool(spec.data.system_prompt) and is_text(spec, facts),
        "plain text has no turns before which it could stand", FOR_CHATS,
    ),
    SpecRule(
        "data.template", ("data.objective",),
        lambda spec, facts: is_text(spec, facts) and not spec.data.general_fraction,
        "plain text is trained on as it is", FOR_CHATS,
    ),
    *(
        SpecRule(
            f"data.{name}", ("data.objective",),
            lambda spec, facts: is_text(spec, facts) and not spec.data.general_fraction,
            "plain text is trained on without a chat template", FOR_CHATS,
        )
        for name in ("template_args", "template_date")
    ),
    SpecRule(
        "data.template_args", ("data.template",),
        lambda spec, facts: not all(reads(facts, name) for name in spec.data.template_args),
        "the chat template does not read all of these variables",
        "Name variables that it reads, or leave it out.", refuses=False,
    ),
    SpecRule(
        "data.template_date", ("data.template",),
        lambda spec, facts: not reads(facts, "strftime_now"),
        "the chat template writes no date", "Leave it out.", refuses=False,
    ),
    SpecRule(
        "data.loss_on", ("data.objective",),
        lambda spec, facts: spec.data.loss_on == "completion" and is_text(spec, facts),
        "plain text has no answers; every token counts", FOR_CHATS,
    ),
    # -- options of methods
    SpecRule(
        "method.text", ("method.init",),
        lambda spec, facts: spec.method["init"] != "text",
        "it is read only where method.init is text", "Set method.init to text.",
    ),
    SpecRule(
        "method.projection_width", ("method.projection",),
        lambda spec, facts: not spec.method["projection"],
        "there is no projection", "Set method.projection to true, or leave it out.",
    ),
    SpecRule(
        "method.layers", ("method.encoder",),
        lambda spec, facts: spec.method["encoder"] == "mlp",
        "the MLP always has three layers", "Set method.encoder to lstm, or leave it out.",
    ),
    SpecRule(
        "method.dropout", ("method.encoder", "method.layers"),
        lambda spec, facts: "encoder" in spec.method
        and (spec.method["encoder"] == "mlp" or spec.method["layers"] == 1),
        "dropout stands between the layers of an LSTM of two or more",
        "Set method.encoder to lstm with two layers, or leave it out.",
    ),
    SpecRule(
        "method.reduction", ("method.size",),
        lambda spec, facts: spec.method["size"] is not None,
        "method.size says how large the bottleneck is", "Set one of the two.",
    ),
    SpecRule(
        "method.rank", ("method.layer_ranks", "method.layer_alphas"),
        lambda spec, facts: bool(spec.method.get("layer_ranks"))
        and bool(spec.method.get("layer_alphas")),
        "method.layer_ranks and method.layer_alphas say both for each layer",
        "Leave it out.", refuses=False,
    ),
    SpecRule(
        "method.alpha", ("method.layer_alphas",),
        lambda spec, facts: bool(spec.method.get("layer_alphas")),
        "method.layer_alphas says it for each layer", "Set one of the two.", refuses=False,
    ),
    SpecRule(
        "method.last_rank", ("method.rank",),
        lambda spec, facts: spec.method["last_rank"] == spec.method["rank"],
        "method.rank is the same, so all layers have it", "Leave it out.", refuses=False,
    ),
    SpecRule(
        "method.last_alpha", ("method.alpha", "method.last_rank"),
        lambda spec, facts: spec.method["last_alpha"] == spec.method["alpha"]
        and spec.method["last_rank"] in (None, spec.method["rank"])
        and not spec.method["layer_ranks"],
        "method.alpha is the same, so all layers have it", "Leave it out.", refuses=False,
    ),
    SpecRule(
        "method.use_rslora", ("method.rank",),
        lambda spec, facts: spec.method.get("rank") == 1
        and not (spec.method.get("layer_ranks") or spec.method.get("last_rank")),
        "with rank 1 the scale alpha / √rank is alpha / rank", "Raise method.rank.", refuses=False,
    ),
    *(
        SpecRule(
            f"method.{name}", ("method.trigger",),
            lambda spec, facts: spec.method.get("trigger") == "steps",
            "layers are unfrozen at a fixed interval (method.trigger)",
            "Set method.trigger to stall, or leave it out.",
        )
        for name in ("patience", "min_delta")
    ),
    SpecRule(
        "method.patience", ("train.eval_steps", "train.max_steps"),
        lambda spec, facts: spec.method.get("trigger") == "stall"
        and never_stalls(spec.method["patience"], spec, facts),
        "the run has too few evaluations for so many without improvement, so no layer is unfrozen",
        "Lower it, or evaluate more often (train.eval_steps).",
    ),
    SpecRule(
        "method.every", ("method.trigger",),
        lambda spec, facts: spec.method.get("trigger") == "stall",
        "layers are unfrozen when the evaluation loss stalls (method.trigger)",
        "Set method.trigger to steps, or leave it out.",
    ),
    SpecRule(
        "method.every", ("train.max_steps",),
        lambda spec, facts: spec.method.get("trigger") == "steps"
        and facts.max_steps is not None
        and spec.method["every"] > facts.max_steps,
        "the run has fewer steps, so no layer is unfrozen", "Lower it.",
    ),
    SpecRule(
        "method.layers_at_once", ("method.most_layers",),
        lambda spec, facts: spec.method["layers_at_once"] > (spec.method["most_layers"] or 1000),
        "method.most_layers allows fewer", "Lower it.", refuses=False,
    ),
)  # fmt: skip


def value_of(spec: RunSpec, field: str) -> Any:
    section, _, name = field.partition(".")
    if section == "method":
        return spec.method.get(name)
    return getattr(getattr(spec, section), name)


def is_asked(spec: RunSpec, field: str) -> bool:
    """Whether the spec has the field, and another value than the default in it."""
    section, _, name = field.partition(".")
    is_method = section == "method"
    config = methods.get(spec.method["name"]).config if is_method else type(getattr(spec, section))
    fields = {entry.name: entry for entry in dataclasses.fields(config)}
    if name not in fields:
        return False
    entry = fields[name]
    factory = entry.default_factory
    default = entry.default if factory is dataclasses.MISSING else factory()
    return bool(value_of(spec, field) != default)


def broken(spec: RunSpec, facts: RunFacts, wrong: frozenset[str] = frozenset()) -> list[SpecRule]:
    """The rules that `spec`, as it was asked for, breaks; those of the fields in `wrong`, which
    have problems already, are left out. One rule for each field."""
    rules: dict[str, SpecRule] = {}
    for rule in RULES:
        fields = {rule.field, *rule.others}
        sections = {field.partition(".")[0] for field in fields}
        if wrong & (fields | sections) or rule.field in rules:
            continue
        if "method" in sections and "method.name" in wrong:
            continue  # the spec holds another method in its place
        if is_asked(spec, rule.field) and rule.is_idle(spec, facts):
            rules[rule.field] = rule
    return list(rules.values())


def explanation(rule: SpecRule, spec: RunSpec) -> str:
    value = quote(value_of(spec, rule.field))
    return f"is {value} and has no effect: {rule.reason}. {rule.way_out}"


def problems(
    spec: RunSpec, facts: RunFacts, wrong: frozenset[str] = frozenset()
) -> tuple[list[Problem], list[str]]:
    """(what keeps the run from being started, what a person should know)."""
    refused, warnings = [], []
    for rule in broken(spec, facts, wrong):
        text = explanation(rule, spec)
        if rule.refuses:
            refused.append(Problem(rule.field, text))
        else:
            warnings.append(f"{rule.field} {text}")
    return refused, warnings
