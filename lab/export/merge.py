"""A result as one plain model folder that any program of the field loads."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lab import methods, paths
from lab.atomic_files import size_of, write_json
from lab.chat import models as chat_models
from lab.data import stop_tokens, template_lock
from lab.errors import LabError
from lab.methods.parts.compatibility import unsupported_reason
from lab.paths import RunDir
from lab.schema import quote
from lab.spec import RunSpec

TOLERANCE = 1e-3  # of the logits' spread: what float32 sums in another order differ by
PROBE_TOKENS = 32


def merge(run: RunDir, target: Path) -> dict[str, Any]:
    """Write base and adapter of `run` as one model into `target`, with tokenizer and receipt.

    The template lock and the hash of the base are enforced. The merged model, read back from the
    disk, must give the answers of the result, or nothing is kept. Returns {"folder", "bytes",
    "largest_difference", "note"}: the difference as a share of the logits' standard deviation,
    and what a person should know of the base. Raises LabError.
    """
    spec = RunSpec.of_run(run)
    method = methods.get(spec.method["name"])
    if not method.can_merge:
        raise LabError(
            f"{run.id} cannot be merged: {method.title}: {unsupported_reason(method.can_merge)}",
            f"Use {run.artifact} as it is.",
        )
    if target.exists():
        raise LabError(f"'{quote(str(target))}' exists.", "Choose another name.")
    named = chat_models.parse(f"run:{run.id}")
    loaded = chat_models.load(named)
    template_lock.enforce_files(loaded.receipt, run.artifact)
    before = _logits(loaded.model)
    try:
        paths.make_folder(target.parent)
        # a name that nobody can have made before, for this account alone
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _failed(error) from None
    try:
        method.merge(loaded.model).save_pretrained(aside)
        for name in template_lock.file_names(run.artifact):
            (aside / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(run.artifact / name, aside / name)
        stop_tokens.write(aside, loaded.tokenizer, loaded.model)
        difference = _difference(before, _logits(_read(aside, loaded.model)))
        if not difference <= TOLERANCE:
            raise LabError(
                f"The merged model of {run.id} answers differently: {difference:.2e} of the "
                f"logits' spread, and {TOLERANCE:g} is the most. It was not kept.",
                f"Use the adapter in {run.artifact}.",
            )
        receipt = {**loaded.receipt, "merged_from": run.id, "largest_difference": difference}
        (aside / "README.md").write_text(_card(spec, receipt, difference), encoding="utf-8")
        write_json(aside / "receipt.json", receipt)
        os.replace(aside, target)
    except OSError as error:
        raise _failed(error) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {
        "folder": str(target),
        "bytes": size_of(target),
        "largest_difference": difference,
        "note": loaded.note,
    }


def _failed(error: OSError) -> LabError:
    return LabError(f"The merge failed: {error}.", "Check the folder and the disk.")


def _card(spec: RunSpec, receipt: dict[str, Any], difference: float) -> str:
    """README.md of the merged model, with the call that `_read` has made."""
    from lab.train import model_card
    from lab.train.proof import ResultProof

    outcome = ResultProof("transformers", True, difference, TOLERANCE, 1, PROBE_TOKENS)
    lines = [
        "from transformers import AutoModelForCausalLM",
        "",
        "model = AutoModelForCausalLM.from_pretrained(RESULT, use_safetensors=True)",
    ]
    return model_card.card(methods.get(spec.method["name"]), spec, receipt, {}, lines, outcome)


def _read(folder: Path, like: Any) -> Any:
    """The written model on the device and in the type of the one in memory."""
    from transformers import AutoModelForCausalLM

    first = next(like.parameters())
    merged = AutoModelForCausalLM.from_pretrained(
        folder, dtype=first.dtype, trust_remote_code=False, use_safetensors=True
    )
    return merged.to(first.device).eval()


def _logits(model: Any) -> Any:
    """(1, PROBE_TOKENS, V) in float32, of tokens from all over the vocabulary."""
    import torch

    device = next(model.parameters()).device
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, size - 1, PROBE_TOKENS, device=device).long()[None]
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits.float()


def _difference(before: Any, after: Any) -> float:
    if before.shape != after.shape:
        return float("inf")
    return float((before - after).abs().max() / before.std())
