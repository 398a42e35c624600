"""The loss of models on the same held-out rows, made on the terms that they were trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lab.atomic_files import read_object
from lab.chat import models as chat_models
from lab.chat.models import ModelRef
from lab.data import chat_template, template_lock
from lab.data.prepare import prepare
from lab.errors import LabError
from lab.paths import RunDir
from lab.schema import quote
from lab.spec import RunSpec

ROWS = 4  # in one forward pass


@dataclass(frozen=True)
class HeldOutLoss:
    """`loss`: in nats a token. `data`: a hash of the rows' tokens and labels."""

    model: str
    loss: float
    perplexity: float
    tokens: int
    rows: int
    note: str
    data: str


def evaluate(names: list[ModelRef], dataset: str | None = None) -> list[HeldOutLoss]:
    """The loss of each model on the same rows.

    The rows are the held-out ones of the first run named, or the whole of `dataset` in that run's
    format; a base alone takes `dataset` as its card says. Raises LabError where a result's template
    lock does not allow the rows, or two tokenizers make different tokens of them.
    """
    spec = _terms(names, dataset)
    rows = [_measure(named, spec, whole=dataset is not None) for named in names]
    if len({row.data for row in rows}) > 1:
        apart = ", ".join(f"{row.model} {row.data[:8]}" for row in rows)
        raise LabError(
            f"The models see different tokens in the same rows ({apart}), so their losses do not "
            "compare.",
            "Measure models of one base and one template together.",
        )
    return rows


def losses(*runs: RunDir) -> tuple[list[float | None], str]:
    """(the loss of each result on the held-out rows of the first, ""), or None for each and why: no
    row is held out, the data is gone. For results that stand whether they can be measured or not.
    """
    try:
        names = [chat_models.parse(f"run:{run.id}") for run in runs]
        return [row.loss for row in evaluate(names)], ""
    except LabError as error:
        return [None for _ in runs], error.message


def _terms(names: list[ModelRef], dataset: str | None) -> RunSpec:
    """The spec whose data section says how rows are made."""
    run = next((named.run for named in names if named.run is not None), None)
    if run is None and dataset is None:
        raise LabError("A base model has no held-out rows.", "Name a dataset with --dataset.")
    if run is None:
        assert dataset is not None
        spec = RunSpec.from_json({"model": names[0].base, "data": {"dataset": dataset}})
    else:
        stored = RunSpec.of_run(run)
        receipt = read_object(run.artifact / "receipt.json") or {}  # none while it trains
        system = str(receipt.get("system_prompt", stored.data.system_prompt or ""))
        spec = replace(stored, data=replace(stored.data, system_prompt=system, packing="off"))
        if dataset is not None:
            # what names columns or rows of the run's own file says nothing of another one
            data = replace(spec.data, dataset=dataset, columns={}, format="auto", max_examples=None)
            spec = replace(spec, data=data)
        elif not spec.data.eval_dataset and not spec.data.eval_fraction:
            raise LabError(f"{run.id} held no rows out.", "Name a set with --dataset.")
    plain = replace(spec.data, general_fraction=0.0, packing="off")
    if dataset is not None:
        plain = replace(plain, eval_fraction=0.0, eval_dataset="")
    return replace(spec, data=plain)


def _measure(named: ModelRef, spec: RunSpec, *, whole: bool) -> HeldOutLoss:
    from lab.train.step import device_batches, evaluation_loss

    loaded = chat_models.load(named)
    first = next(loaded.model.parameters())
    if named.run is None:
        chat_template.set_up_template(loaded.tokenizer, spec.data)
    prepared = prepare(spec, loaded.tokenizer)
    proof = loaded.receipt.get("lock") or {}
    template_lock.check_settings(
        proof, loaded.tokenizer, prepared.system_prompt, spec.data.loss_on, named.name
    )
    rows = prepared.train if whole else prepared.held_out
    if not len(rows):
        raise LabError(
            f"'{quote(spec.data.dataset)}' has no held-out row with a token to score.",
            "Name another set with --dataset.",
        )
    longest = max(rows[index].tokens for index in range(len(rows)))
    if loaded.length is not None and longest > loaded.length:
        raise LabError(
            f"The longest row has {longest:,} tokens, and {named.name} reads {loaded.length:,}.",
            "Measure models that read as much, or train with a shorter data.max_length.",
        )
    loss, tokens = evaluation_loss(
        loaded.model,
        device_batches(rows, ROWS, loaded.tokenizer.pad_token_id, first.device),
        precision="float32",
        loss="plain",
    )
    data = prepared.figures.train_hash if whole else prepared.figures.held_out_hash
    perplexity = math.exp(min(loss, 700.0))
    return HeldOutLoss(named.name, loss, perplexity, tokens, len(rows), loaded.note, data)
