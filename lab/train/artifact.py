"""The result of a run: weights or adapter, tokenizer, template, and a receipt for them."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from lab.atomic_files import remove_tree, size_of, sync_folder, write_json
from lab.data import chat_template, stop_tokens, template_lock
from lab.errors import LabError
from lab.methods import Method
from lab.paths import RunDir
from lab.schema import quote
from lab.spec import RunSpec


def save(
    run: RunDir,
    model: Any,
    tokenizer: Any,
    method: Method,
    spec: RunSpec,
    facts: dict[str, Any],
) -> int:
    """Write `artifact/` aside and rename it into place; its size in bytes."""
    aside = run.path / ".tmp-artifact"
    remove_tree(aside)
    aside.mkdir()
    try:
        method.save(model, aside)
        # PEFT writes a model card of placeholders
        (aside / "README.md").unlink(missing_ok=True)
        tokenizer.save_pretrained(aside)
        stop_tokens.write(aside, tokenizer, model)
        write_json(aside / "receipt.json", receipt(aside, model, tokenizer, spec, facts))
        _sync(aside)
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
        "start_from": spec.start_from,
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
        "weights": {file.name: _sha256(file) for file in sorted(folder.glob("*.safetensors"))},
    }


def _sha256(path: Path) -> str:
    """Of a file that may be as large as the memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
