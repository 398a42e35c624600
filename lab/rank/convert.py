"""A result as a plain LoRA of no higher rank than its energy needs, and what that costs.

PEFT's `convert_to_lora`, or our own decomposition where it has none, cuts the update of every layer
down to the fewest singular values that hold a share of its energy. The new result is proven as all
are; how far it answers otherwise, and the loss on the held-out rows before and after, are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab import background_job, methods, paths
from lab.atomic_files import read_object, size_of
from lab.chat import models as chat_models
from lab.errors import LabError
from lab.evals import held_out
from lab.export import lora_form, merge_proof
from lab.export.new_result import Origin, write_result
from lab.models import catalog, weights, weights_hash
from lab.paths import RunDir
from lab.rank import decompose
from lab.rank.spectrum import ENERGY
from lab.spec import RunSpec

ADAPTER = "converted"


@dataclass(frozen=True)
class Conversion:
    """`run` is the new result. `ranks` by layer, `rank` the largest of them. `fidelity`: share of
    the length of all updates that is kept. The differences are those of the logits on `rows` rows:
    the largest, the same as a share of their spread, the share of positions with the same most
    likely token, and the KL divergence in nats a position. The losses, of the held-out rows in nats
    a token, are None where they could not be measured; `note` says why. `base_note`: that
    nobody can say whether the base is the one that `run` was trained on."""

    run: str
    energy: float
    ranks: Mapping[str, int]
    rank: int
    fidelity: float
    bytes_before: int
    bytes_after: int
    largest_difference: float
    share_of_spread: float
    same_top: float
    kl: float
    rows: int
    loss_before: float | None = None
    loss_after: float | None = None
    note: str = ""
    base_note: str = ""


def why_not(run: RunDir) -> str:
    """Why the result of `run` cannot be converted, in a sentence; empty where it may be."""
    reason = lora_form.why_not(run)
    if reason and decompose.why_not(run):
        return reason
    spec = RunSpec.of_run(run)
    if methods.get(spec.method["name"]).load_kwargs(spec.method_config):
        return "the matrices of its base are quantised."
    return ""


def check(run: RunDir, energy: float) -> None:
    """Raise LabError for what stands against it, before anything is loaded."""
    if not run.artifact.is_dir():
        raise LabError(f"{run.id} has no trained model yet.", "Wait until it has ended.")
    if problem := lora_form.energy_problem(energy):
        raise LabError(problem, "Take a share such as 0.95.")
    if reason := why_not(run):
        raise LabError(f"{run.id} cannot become a LoRA: {reason}", "Use the result as it is.")


def convert(
    run: RunDir, energy: float = ENERGY, tell: Callable[[str], object] = lambda phase: None
) -> Conversion:
    """Raises LabError where it cannot be done, or the new result cannot be proven."""
    from lab.train import proof

    check(run, energy)
    import torch

    spec = RunSpec.of_run(run)
    source = catalog.resolve(chat_models.parse(f"run:{run.id}").base)
    receipt = read_object(run.artifact / "receipt.json") or {}
    is_narrow = spec.train.precision == "bfloat16"
    tell("loading the result")
    base_note = weights_hash.check(receipt.get("base"), weights_hash.identify(source), run.id)
    base = weights.load_model(source, torch.bfloat16 if is_narrow else torch.float32)
    loaded = lora_form.load(run, base)
    tokenizer = chat_models.prompt_terms(chat_models.parse(f"run:{run.id}")).tokenizer
    rows, rows_from = merge_proof.probe_rows(spec, receipt, loaded, tokenizer)
    with merge_proof.in_float32(loaded) as has_room:
        before = proof.answers(loaded, rows)
    tell("decomposing the updates")
    if lora_form.why_not(run):
        form = decompose.decompose(run, base, float(energy))
    else:
        form = lora_form.convert(run, loaded, float(energy))
    del loaded
    model = form.put_on(base, ADAPTER)
    with merge_proof.in_float32(model) if has_room else nullcontext(False) as is_float32:
        after = proof.answers(model, rows)
    distance = merge_proof.compare(
        before, after, rows=len(rows), rows_from=rows_from, base="as trained",
        dtype="bfloat16" if is_narrow else "float32",
        computed_in="float32" if is_float32 or not is_narrow else "bfloat16",
    )  # fmt: skip
    tell("writing and proving")
    modules = sorted({name.rpartition(".")[2] for name in form.ranks})
    method = {"name": "lora", "rank": form.rank, "alpha": float(form.rank), "dropout": 0.0}
    method["target_modules"] = modules
    name = f"{spec.name or run.id} as LoRA"[:120]
    train = replace(spec.train, adapter_precision="float32")
    new_spec = replace(spec, name=name, method=method, train=train, init_from_run="")
    figures = {"Converted from": run.id, "Energy kept in each layer": f"{100 * energy:g} %"}
    origin = Origin(ADAPTER, run, {"results": [run.id], "energy": energy}, figures, "Keep it.")
    new, _ = write_result(model, ADAPTER, new_spec, source, origin)
    tell("measuring the loss")
    (loss_before, loss_after), note = held_out.losses(run, new)
    return Conversion(
        run=new.id,
        energy=energy,
        ranks=form.ranks,
        rank=max(form.ranks.values()),
        fidelity=form.fidelity,
        bytes_before=size_of(run.artifact),
        bytes_after=size_of(new.artifact),
        largest_difference=distance.largest_difference,
        share_of_spread=distance.share_of_spread,
        same_top=distance.same_top,
        kl=distance.kl,
        rows=len(rows),
        loss_before=loss_before,
        loss_after=loss_after,
        note=note,
        base_note=base_note,
    )


# -- in the background ---------------------------------------------------------------------------


def job_file(run: RunDir) -> Path:
    return paths.home() / "cache" / "rank" / f"convert-{run.id}.json"


def start(run: RunDir, energy: float) -> None:
    """Begin in a process of its own. Raises LabError while it is at work, or cannot be done."""
    check(run, energy)
    background_job.start(job_file(run), ["lab.rank", "convert", run.id], {"energy": energy})


def work(run: RunDir) -> int:
    """What that process does; its exit code."""

    def make(request: Mapping[str, Any], tell: Callable[[str], None]) -> Conversion:
        return convert(run, float(request.get("energy", ENERGY)), tell)

    return background_job.work(job_file(run), make)
