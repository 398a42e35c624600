"""The result of a run: weights or adapter, tokenizer, template, and a receipt for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.atomic_files import remove_tree, sha256_of, size_of, sync_folder, sync_tree, write_json
from lab.data import chat_template, stop_tokens, template_lock
from lab.data.prepare import PreparedData
from lab.errors import LabError
from lab.methods import Method
from lab.models.catalog import BUILT_IN, ModelSource
from lab.paths import RunDir
from lab.runs import record_reader
from lab.schema import quote
from lab.spec import RunSpec
from lab.train import model_card, proof


@dataclass(frozen=True)
class Proving:
    """What a proof needs beside the result: the base, token ids of a few rows, and what the card
    says of the run."""

    source: ModelSource
    rows: Sequence[list[int]]
    figures: dict[str, Any]
    warn: Callable[[str], None]


def proving(
    run: RunDir, source: ModelSource, data: PreparedData, warn: Callable[[str], None]
) -> Proving:
    """For a run that has trained: rows that it has not learned from, where there are some."""
    chosen = data.held_out or data.train
    rows = [chosen[i].ids[: proof.TOKENS] for i in range(min(proof.ROWS, len(chosen)))]
    evaluations = record_reader.metrics(run, "eval")
    losses = [record["eval/loss"] for record in evaluations if "eval/loss" in record]
    figures = {
        "Evaluation loss of the base": record_reader.base_loss(run),
        "Evaluation loss": losses[-1] if losses else None,
        "Steps": (record_reader.metrics(run, "train") or [{}])[-1].get("step"),
        "Tokens": (record_reader.metrics(run, "train") or [{}])[-1].get("tokens"),
    }
    known = {name: value for name, value in figures.items() if value is not None}
    return Proving(source, rows, known, warn)


def save(
    run: RunDir,
    model: Any,
    tokenizer: Any,
    method: Method,
    spec: RunSpec,
    facts: dict[str, Any],
    proving: Proving | None = None,
) -> int:
    """Write `artifact/` aside, prove it, and rename it into place; its size in bytes.

    The proof frees the memory of `model`. A failed one stands in the receipt and the card, and is
    told; the result stays.
    """
    aside = run.path / ".tmp-artifact"
    remove_tree(aside)
    aside.mkdir()
    try:
        method.save(model, aside)
        tokenizer.save_pretrained(aside)
        stop_tokens.write(aside, tokenizer, model)
        record = receipt(aside, model, tokenizer, spec, facts)
        lines = proof.loading_lines(method, spec, aside, len(model.get_input_embeddings().weight))
        outcome = None
        if proving is not None:
            outcome = proof.prove(aside, model, method, spec, proving.source, proving.rows)
            record["proof"] = outcome.to_json()
            if outcome.problem:
                proving.warn(outcome.problem)
        figures = proving.figures if proving else {}
        licences = {f"builtin:{known.name}": known.license for known in BUILT_IN}
        licence = licences.get(spec.model, "")
        text = model_card.card(method, spec, record, figures, lines, outcome, licence)
        (aside / "README.md").write_text(text, encoding="utf-8")
        write_json(aside / "receipt.json", record)
        sync_tree(aside)
        remove_tree(run.artifact)
        os.replace(aside, run.artifact)
        sync_folder(run.path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return size_of(run.artifact)


def load_initial_weights(model: Any, twin: Any, method: Method, folder: Path) -> None:
    """Copy what another run has trained into `model`, by name. Raises LabError if names differ.

    `twin` is another tree over the tensors of the base, as it was before the method was applied.
    """
    import torch

    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    other = dict(method.load_saved(twin, folder).named_parameters())
    for weight in trainable.values():
        weight.requires_grad_(True)  # PEFT freezes the base's tensors, which the twin shares
    lost = sorted(set(trainable) - set(other))
    if lost:
        raise LabError(
            f"The result holds no {quote(', '.join(lost[:3]))}: {method.title} does not keep all "
            "that it trains.",
            "Begin with the base instead.",
        )
    with torch.no_grad():
        for name, weight in trainable.items():
            weight.copy_(other[name])


def receipt(
    folder: Path, model: Any, tokenizer: Any, spec: RunSpec, facts: dict[str, Any]
) -> dict[str, Any]:
    """What the result was made of: enough to prove a comparison fair."""
    system_prompt = spec.data.system_prompt or ""
    return {
        "v": 1,
        "model": spec.model,
        "method": spec.method,
        "init_from_run": spec.init_from_run,
        "system_prompt": system_prompt,
        "loss_on": spec.data.loss_on,
        "template_hash": chat_template.fingerprint(tokenizer, system_prompt, spec.data.loss_on),
        "lock": template_lock.make_lock(tokenizer, system_prompt, spec.data.loss_on),
        "tokenizer_files": template_lock.files(folder),
        "end_token": tokenizer.eos_token,
        "stop_tokens": stop_tokens.ids(tokenizer, model),
        "pad_token": tokenizer.pad_token,
        "seed": spec.train.seed,
        **facts,
        "weights": {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))},
    }
