"""Exports of a result: merged folders and GGUF files under RUN/exports, with a record of each.

They are made in the background, one at a time for each run (`python -m lab.export`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab import background_job, methods
from lab.atomic_files import read_object, remove_tree
from lab.background_job import JobRecord
from lab.chat import models as chat_models
from lab.data import template_lock
from lab.errors import LabError
from lab.export import gguf_file, merge
from lab.models import catalog
from lab.paths import RunDir
from lab.schema import quote
from lab.spec import RunSpec

# the weight types of each kind, the usual one first
TYPES = {"merged": ("bfloat16", "float32"), "gguf": ("Q8_0", "F16", "F32")}
BYTES_PER_WEIGHT = {"bfloat16": 2, "float32": 4, "F32": 4, "F16": 2, "Q8_0": 34 / 32}
MERGE_PHASES = (
    *("starting", "loading the result", "reading the rows of the proof", "merging"),
    "proving the merged model",
)
PHASES = {
    "merged": MERGE_PHASES,
    "gguf": (*MERGE_PHASES, "writing the GGUF file", "proving the GGUF file"),
}


def output(run: RunDir, kind: str, weight_type: str) -> Path:
    """The folder or file that is made. Raises LabError for a kind or type that there is not."""
    if weight_type not in TYPES.get(kind, ()):
        known = ", ".join(f"{name}-{each}" for name, types in TYPES.items() for each in types)
        raise LabError(
            f"There is no export '{quote(kind)}-{quote(weight_type)}'.", f"Choose one of {known}."
        )
    return run.exports / (f"merged-{weight_type}" if kind == "merged" else f"{weight_type}.gguf")


def job_file(run: RunDir, kind: str, weight_type: str) -> Path:
    output(run, kind, weight_type)  # raises for what would be another name
    return run.exports / f"{kind}-{weight_type}.json"


def record(run: RunDir, kind: str, weight_type: str) -> JobRecord | None:
    """What is known of an export; None before it was begun, and where its files are gone."""
    target = output(run, kind, weight_type)
    job = background_job.read(job_file(run, kind, weight_type))
    if job is not None and job.finish == "done" and not target.exists():
        return None
    return job


def active(run: RunDir) -> tuple[str, str] | None:
    """(kind, type) of the export that is being made, if there is one."""
    for kind, types in TYPES.items():
        for weight_type in types:
            job = record(run, kind, weight_type)
            if job is not None and job.is_active:
                return kind, weight_type
    return None


def fraction(kind: str, job: JobRecord) -> float:
    """The share of the phases that are over, 0 to 1."""
    phases = PHASES[kind]
    return phases.index(job.phase) / len(phases) if job.phase in phases else 0.0


def is_current(run: RunDir, job: JobRecord) -> bool:
    """Whether it was made of the result as it is now: a resumed run writes another one."""
    return job.result.get("weights") == _weights(run)


def predicted_bytes(run: RunDir, kind: str, weight_type: str) -> int:
    """About what the export takes on the disk. Raises LabError where the base is not here."""
    names = template_lock.file_names(run.artifact)
    tokenizer = sum((run.artifact / name).stat().st_size for name in names)
    if kind == "gguf":
        tokenizer //= 2  # without what only tokenizer.json says
    return round(merge.bytes_needed(run) / 4 * BYTES_PER_WEIGHT[weight_type]) + tokenizer


def why_not(run: RunDir, kind: str) -> tuple[str, str]:
    """(why the result of `run` has no export of this kind, what works instead); empty where it has
    one. A model of the Hub that is not here yet is judged when it is exported; one whose folder is
    gone is told with the way to put it back."""
    is_whole = methods.get(RunSpec.of_run(run).method["name"]).saves_whole_model
    if kind == "merged" or not is_whole:
        if reason := merge.why_not(run):
            way_out = (
                "Download it." if is_whole else "Load the adapter beside its base, as Chat does."
            )
            return reason, way_out
    if is_whole:
        return ("", "") if kind == "merged" else gguf_file.why_not(run.artifact)
    try:
        source = catalog.resolve(chat_models.parse(f"run:{run.id}").base)
    except LabError as error:
        return error.message, error.hint
    if kind == "merged" or source.is_on_hub:
        return "", ""
    return gguf_file.why_not(Path(source.location))


def start(run: RunDir, kind: str, weight_type: str) -> None:
    """Begin to make an export in the background. Raises LabError for what stands against it."""
    target = output(run, kind, weight_type)
    reason, way_out = why_not(run, kind)
    if reason:
        raise LabError(f"{run.id} cannot be exported: {reason}", way_out)
    if active(run) is not None:
        raise LabError("Another export of this run is being made.", "Wait until it ends.")
    needed = predicted_bytes(run, kind, weight_type)
    if kind == "gguf":  # the merged model in float32 stands beside it for a while
        needed += merge.bytes_needed(run)
    merge.check_disk(target, needed)
    background_job.start(
        job_file(run, kind, weight_type), ["lab.export", kind, run.id, weight_type]
    )


def stop(run: RunDir) -> None:
    """End the export that is being made; what lies of it is removed at the next one."""
    export = active(run)
    if export is not None:
        background_job.stop(job_file(run, *export))


def make(run: RunDir, kind: str, weight_type: str) -> int:
    """Make an export in this process and keep its record; the exit code."""
    target = output(run, kind, weight_type)

    def work(request: Mapping[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
        weights = _weights(run)
        _clear(run, target)
        note = ""
        result: merge.MergedModel | gguf_file.WrittenGguf
        if kind == "merged":
            result = merge.merge(run, target, weight_type, tell)
            note = result.note
        else:
            result = gguf_file.of_run(run, target, weight_type, tell)
        return {"bytes": result.bytes, "proof": result.proof, "weights": weights, "note": note}

    return background_job.work(job_file(run, kind, weight_type), work)


def _clear(run: RunDir, target: Path) -> None:
    """Remove the export that is made anew, and what processes that were killed have left."""
    for left in [target, *run.exports.glob(".*")]:
        if left.is_file():
            left.unlink()
        else:
            remove_tree(left)


def _weights(run: RunDir) -> dict[str, str]:
    stored = (read_object(run.artifact / "receipt.json") or {}).get("weights")
    return {str(name): str(stored[name]) for name in stored} if isinstance(stored, dict) else {}
