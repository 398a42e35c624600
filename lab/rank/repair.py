"""Intruder dimensions taken back: a new result of a LoRA, and what it gives up and wins.

An intruder dimension is a leading singular vector of W + ΔW that is like none of W's
(arXiv:2410.21228). PEFT's `reduce_intruder_dimension` takes a share of each out of ΔW, which wins
back some of what was forgotten and costs some of what was learned. The new result is proven as all
are; loss and forgetting of both are measured, because which of the two weighs more is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab import background_job, methods, paths
from lab.atomic_files import read_object
from lab.chat import models as chat_models
from lab.errors import LabError
from lab.evals import held_out
from lab.export import lora_form
from lab.export.new_result import Origin, write_result
from lab.methods.parts import adapter_files
from lab.models import catalog
from lab.paths import RunDir
from lab.spec import RunSpec

# The share of an intruder that stays, PEFT's default. Its docstring calls this the share that is
# subtracted; its code multiplies the intruder by it, as the paper does.
STAYS = 0.75
INTRUDERS_LINE = re.compile(r"Intruders: (\d+)")
ADAPTER = "repaired"
TOP, THRESHOLD = 10, 0.5  # leading vectors that are looked at; |cosine| below which one is new


@dataclass(frozen=True)
class Quality:
    """`loss` on the held-out rows, `forgetting`: the rise of the loss on the base's own general
    answers; nats a token, each None where it could not be measured."""

    loss: float | None
    forgetting: float | None


@dataclass(frozen=True)
class Repair:
    """`run` is the new result. `intruders` were found in `matrices` of the old one's updates.
    `note`: why the losses could not be measured."""

    run: str
    intruders: int
    matrices: int
    before: Quality
    after: Quality
    note: str = ""


def why_not(run: RunDir) -> str:
    """Why the result of `run` cannot be repaired, in a sentence; empty where it may be."""
    config = read_object(run.artifact / adapter_files.CONFIG) or {}
    if config.get("peft_type") != "LORA":
        return "only the update of a LoRA can be repaired."
    spec = RunSpec.of_run(run)
    if methods.get(spec.method["name"]).load_kwargs(spec.method_config):
        return "the matrices of its base are quantised."
    if config.get("fan_in_fan_out"):
        return (
            "its base stores its matrices the other way round, which PEFT's repair does not know."
        )
    return lora_form.why_not(run)


def repair(run: RunDir, tell: Callable[[str], object] = lambda phase: None) -> Repair:
    """Raises LabError where there is nothing to repair, or the new result cannot be proven."""
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    if reason := why_not(run):
        raise LabError(f"{run.id} cannot be repaired: {reason}", "Choose a LoRA.")
    spec = RunSpec.of_run(run)
    named = chat_models.parse(f"run:{run.id}")
    source = catalog.resolve(named.base)
    tell("loading the result")
    loaded = chat_models.load(named)
    model = loaded.model
    tell("looking for intruders")
    counts: list[int] = []

    def count(line: str) -> None:
        counts.extend(int(text) for text in INTRUDERS_LINE.findall(line))

    reduce_intruder_dimension(
        model,
        new_adapter_name=ADAPTER,
        top_k=TOP,
        threshold_epsilon=THRESHOLD,
        mitigation_lambda=STAYS,
        logging_sink=count,
    )
    if not counts:
        raise LabError(
            f"The updates of {run.id} hold no intruder dimension.", "There is nothing to repair."
        )
    tell("measuring what was forgotten")
    forgotten = _forgetting(model, loaded, source, ("default", ADAPTER))
    tell("writing and proving")
    model.set_adapter(ADAPTER)
    model.delete_adapter("default")
    figures = {"Repaired from": run.id, "Intruder dimensions reduced": sum(counts)}
    origin = Origin(ADAPTER, run, {"results": [run.id]}, figures, "Keep the result as it is.")
    name = f"{spec.name or run.id} repaired"[:120]
    new, _ = write_result(model, ADAPTER, replace(spec, name=name), source, origin)
    tell("measuring the loss")
    (before, after), note = held_out.losses(run, new)
    return Repair(
        run=new.id,
        intruders=sum(counts),
        matrices=len(counts),
        before=Quality(before, forgotten[0]),
        after=Quality(after, forgotten[1]),
        note=note,
    )


def _forgetting(model: Any, loaded: Any, source: Any, adapters: tuple[str, str]) -> list[float]:
    """The rise on the base's own answers under each adapter."""
    from lab.train import forgetting

    with model.disable_adapter():
        answers = forgetting.base_answers_file(source, loaded.tokenizer, lambda: model)
        base = forgetting.likelihood(model, loaded.tokenizer, answers, length=loaded.length)
    rises = []
    for adapter in adapters:
        model.set_adapter(adapter)
        tuned = forgetting.likelihood(
            model, loaded.tokenizer, answers, base.top_ids, length=loaded.length
        )
        rises.append(forgetting.compare(base, tuned)["probe/rise"])
    return rises


# -- in the background ---------------------------------------------------------------------------


def job_file(run: RunDir) -> Path:
    return paths.home() / "cache" / "rank" / f"repair-{run.id}.json"


def start(run: RunDir) -> None:
    """Begin in a process of its own. Raises LabError while it is at work, or cannot be done."""
    if reason := why_not(run):
        raise LabError(f"{run.id} cannot be repaired: {reason}", "Choose a LoRA.")
    background_job.start(job_file(run), ["lab.rank", "repair", run.id])


def work(run: RunDir) -> int:
    """What that process does; its exit code."""
    return background_job.work(job_file(run), lambda request, tell: repair(run, tell))
