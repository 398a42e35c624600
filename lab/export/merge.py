"""A result as one plain model folder that any program of the field loads."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import methods, paths
from lab.atomic_files import size_of, sync_folder, sync_tree, write_json
from lab.chat import models as chat_models
from lab.data import stop_tokens, template_lock
from lab.errors import LabError
from lab.export import merge_proof
from lab.formatting import size
from lab.methods.parts.compatibility import unsupported_reason
from lab.models import catalog, hub, weights
from lab.paths import RunDir
from lab.schema import quote
from lab.spec import RunSpec

PRECISIONS = ("auto", "float32", "bfloat16")
RESERVE_BYTES = 100_000_000  # of disk that a merge leaves free


def why_not(run: RunDir) -> str:
    """Why the result of `run` cannot be merged; empty where it can."""
    method = methods.get(RunSpec.of_run(run).method["name"])
    return "" if method.can_merge else f"{method.title}: {unsupported_reason(method.can_merge)}"


def bytes_needed(run: RunDir, precision: str = "float32") -> int:
    """What the merged model of `run` takes on the disk, from the headers of the base."""
    named = chat_models.parse(f"run:{run.id}")
    stored = hub.stored_tensors(catalog.resolve(named.base))
    width = 2 if precision == "bfloat16" else 4
    return width * sum(math.prod(tensor.shape) for tensor in stored.values())


def check(run: RunDir, target: Path, precision: str) -> None:
    """Raise LabError for what stands against a merge, before anything is loaded or downloaded."""
    if reason := why_not(run):
        raise LabError(f"{run.id} cannot be merged: {reason}", f"Use {run.artifact} as it is.")
    if precision not in PRECISIONS:
        raise LabError(
            f"'{quote(precision)}' is not a precision.", f"Choose one of {', '.join(PRECISIONS)}."
        )
    if target.exists():
        raise LabError(f"'{quote(str(target))}' exists.", "Choose another name.")
    check_disk(target, bytes_needed(run, precision))


@dataclass(frozen=True)
class MergedModel:
    """`largest_difference`: as a share of the logits' standard deviation. `proof`: as MergeProof
    writes it."""

    folder: str
    bytes: int
    largest_difference: float
    proof: Mapping[str, Any]
    note: str
    warning: str


def merge(
    run: RunDir,
    target: Path,
    precision: str = "auto",
    tell: Callable[[str], object] = lambda phase: None,
) -> MergedModel:
    """Write base and adapter of `run` as one model into `target`, with tokenizer and receipt.

    `precision`: the type of the weights on the disk; auto is the type that the lab answers in. A
    4-bit base is dequantised first. The template lock and the hash of the base are enforced. The
    merged model, read back from the disk, must give the answers of the result, or nothing is kept.
    `tell` gets each phase in words. Raises LabError.
    """
    check(run, target, precision)
    import torch

    from lab.train import proof as read_back

    spec = RunSpec.of_run(run)
    method = methods.get(spec.method["name"])
    tell("loading the result")
    loaded = chat_models.load(chat_models.parse(f"run:{run.id}"))
    template_lock.enforce_files(loaded.receipt, run.artifact)
    model = loaded.model
    embeddings = model.get_input_embeddings().weight
    device, dtype = embeddings.device, embeddings.dtype
    kind = "4 bits, dequantised" if weights.is_quantised(model) else _name(embeddings.dtype)
    written_as = _name(embeddings.dtype) if precision == "auto" else precision
    tell("reading the rows of the proof")
    rows, rows_from = merge_proof.probe_rows(spec, loaded.receipt, model, loaded.tokenizer)
    with merge_proof.in_float32(model) as is_float32:
        before = read_back.answers(model, rows)
    try:
        paths.make_folder(target.parent)
        # a name that nobody can have made before, for this account alone
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _failed(error) from None
    try:
        tell("merging")
        merged = method.merge(model)
        merged.to(_types()[written_as]).save_pretrained(aside)
        for name in template_lock.file_names(run.artifact):
            (aside / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(run.artifact / name, aside / name)
        stop_tokens.write(aside, loaded.tokenizer, merged)
        read_back.release(merged)  # two models never stand beside each other
        tell("proving the merged model")
        computed_in = torch.float32 if is_float32 else dtype
        after = read_back.answers(_read(aside, device, computed_in), rows)
        proof = merge_proof.compare(
            before, after, rows=len(rows), rows_from=rows_from, base=kind,
            dtype="bfloat16" if "bfloat16" in (written_as, _name(dtype)) else "float32",
            computed_in=_name(computed_in),
        )  # fmt: skip
        if proof.verdict == "refused":
            raise LabError(
                f"The merged model of {run.id} answers differently: {proof.sentence}. It was not "
                "kept.",
                f"Use the adapter in {run.artifact}, or merge in float32.",
            )
        record = proof.to_json()
        receipt = {**loaded.receipt, "merged_from": run.id, "merge_proof": record}
        (aside / "README.md").write_text(_card(spec, receipt, proof), encoding="utf-8")
        write_json(aside / "receipt.json", receipt)
        write_json(aside / merge_proof.FILE, record)
        sync_tree(aside)
        os.replace(aside, target)
        sync_folder(target.parent)
    except OSError as error:
        raise _failed(error) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    warning = f"It differs: {proof.sentence}." if proof.verdict == "differs" else ""
    return MergedModel(
        str(target), size_of(target), proof.share_of_spread, record, loaded.note, warning
    )


def check_disk(target: Path, needed: int) -> None:
    """Raise LabError unless the disk of `target` has `needed` bytes free, and a little more."""
    parent = next(folder for folder in target.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed + RESERVE_BYTES:
        raise LabError(
            f"It needs {size(needed)} of disk, and {size(free)} are free.",
            "Free some space, or choose a folder on another disk.",
        )


def _types() -> dict[str, Any]:
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _failed(error: OSError) -> LabError:
    return LabError(f"The merge failed: {error}.", "Check the folder and the disk.")


def _card(spec: RunSpec, receipt: dict[str, Any], proof: merge_proof.MergeProof) -> str:
    """README.md of the merged model, with the call that `_read` has made."""
    from lab.train import model_card
    from lab.train import proof as read_back

    outcome = read_back.ResultProof(
        "transformers", True, proof.share_of_spread, proof.bounds.spread, proof.rows, proof.tokens
    )
    lines = [
        "from transformers import AutoModelForCausalLM",
        "",
        "model = AutoModelForCausalLM.from_pretrained(RESULT, use_safetensors=True)",
    ]
    return model_card.card(methods.get(spec.method["name"]), spec, receipt, {}, lines, outcome)


def _read(folder: Path, device: Any, dtype: Any) -> Any:
    """The written model on the device and in the type of the one that was merged."""
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, trust_remote_code=False, use_safetensors=True
    )
    return merged.to(device).eval()
