"""A result that is made of others without training: written aside, proven, and renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab import methods, paths
from lab.atomic_files import read_object, sha256_of, sync_folder, sync_tree, write_json
from lab.chat import models as chat_models
from lab.data import template_lock
from lab.errors import LabError
from lab.export import merge_proof
from lab.methods.parts import adapter_files
from lab.paths import RunDir
from lab.runs import colours
from lab.spec import RunSpec

OF_THE_ADAPTER = (adapter_files.CONFIG, adapter_files.WEIGHTS, "README.md", "receipt.json")
OF_WHOLE_MODELS = ("config.json", "model.safetensors.index.json")


@dataclass(frozen=True)
class Origin:
    """What a new result comes from. `verb`: "combined". `first` lends its tokenizer and template.
    `facts` stand in the receipt under VERB_from, `figures` in the card; `hint` says what to do
    where the proof fails."""

    verb: str
    first: RunDir
    facts: Mapping[str, Any]
    figures: Mapping[str, Any]
    hint: str


def write_result(
    model: Any, adapter: str, spec: RunSpec, source: Any, origin: Origin
) -> tuple[RunDir, Any]:
    """The new run with the one adapter of `model`, and its proof: complete when it appears under
    its name. Raises LabError where it does not answer as in memory once it is read back."""
    from lab.train import model_card
    from lab.train import proof as read_back

    first = origin.first
    method = methods.get(spec.method["name"])
    tokenizer = chat_models.prompt_terms(chat_models.parse(f"run:{first.id}")).tokenizer
    receipt = read_object(first.artifact / "receipt.json") or {}
    rows, _ = merge_proof.probe_rows(spec, receipt, model, tokenizer)
    folder = paths.make_folder(paths.runs())
    aside = Path(tempfile.mkdtemp(prefix=f".tmp-{origin.verb}-", dir=folder))
    new = RunDir(aside)
    try:
        for path in (new.artifact, new.commands, new.checkpoints):
            path.mkdir()
        model.save_pretrained(aside / "adapter", selected_adapters=[adapter])
        for file in (aside / "adapter" / adapter).iterdir():
            if file.name in OF_THE_ADAPTER[:2]:
                os.replace(file, new.artifact / file.name)
        shutil.rmtree(aside / "adapter")
        for file in sorted(first.artifact.rglob("*")):  # tokenizer, template, generation config
            name = file.relative_to(first.artifact)
            is_of_weights = file.suffix == ".safetensors" or name.name in OF_WHOLE_MODELS
            if is_of_weights or name.name in OF_THE_ADAPTER:
                continue
            if file.is_file() and not file.is_symlink():
                paths.make_folder((new.artifact / name).parent)
                shutil.copyfile(file, new.artifact / name)
        template_lock.enforce_files(receipt, new.artifact)
        lines = read_back.loading_lines(method, spec, new.artifact, 0)
        outcome = read_back.prove(new.artifact, model, method, spec, source, rows)
        outcome = replace(outcome, zero_rows={})  # what is cut away or filled up is zero
        if outcome.problem:
            raise LabError(f"{outcome.problem} It was not kept.", origin.hint)
        receipt |= {
            "method": spec.method,
            f"{origin.verb}_from": dict(origin.facts),
            "weights": {adapter_files.WEIGHTS: sha256_of(new.artifact / adapter_files.WEIGHTS)},
            "proof": outcome.to_json(),
        }
        card = model_card.card(method, spec, receipt, dict(origin.figures), lines, outcome)
        (new.artifact / "README.md").write_text(card, encoding="utf-8")
        write_json(new.artifact / "receipt.json", receipt)
        now = time.time()
        write_json(new.spec, {"v": 1, **spec.to_json(), "created": now})
        write_json(new.labels, {"v": 1, "colour": colours.next_colour()})
        state = {"v": 1, "state": "done", "started": now, "ended": now}
        parents = ", ".join(origin.facts["results"])
        message = f"{origin.verb.capitalize()} from {parents}; nothing was trained."
        write_json(new.result, state | {"message": message, "hint": "", "summary": {}})
        aside.chmod(0o755)
        run_id = paths.new_run_id(origin.verb)
        sync_tree(aside)
        os.rename(aside, folder / run_id)
        sync_folder(folder)
        return RunDir(folder / run_id), outcome
    except OSError as error:
        raise LabError(f"The new result cannot be written: {error}.", "Check the disk.") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
