"""Whether a run can begin with the result of another one."""

from __future__ import annotations

from lab import methods, paths
from lab.atomic_files import read_object
from lab.errors import LabError, Problem
from lab.models import catalog, weights
from lab.schema import quote
from lab.spec import RunSpec


def problems(spec: RunSpec) -> list[Problem]:
    """What keeps `spec.start_from` from being the start of this run; empty if nothing does."""
    if not spec.start_from:
        return []
    kind, _, run_id = spec.start_from.partition(":")
    try:
        if kind != "run":
            raise LabError(f"'{quote(spec.start_from)}' names no result.", "Write run:ID.")
        run = paths.run_dir(run_id)
    except LabError as error:
        return [Problem("start_from", str(error))]
    if not (run.artifact / "receipt.json").is_file():
        return [
            Problem("start_from", f"{run.id} has no result yet. Wait until it ends, or stop it.")
        ]
    done = RunSpec.from_stored(read_object(run.spec) or {})
    found = []
    if done.model != catalog.resolve(spec.model).id:
        found.append(f"trained {quote(done.model)}, this one {quote(spec.model)}")
    if done.method != spec.method:
        differing = sorted(
            key
            for key in done.method.keys() | spec.method.keys()
            if done.method.get(key) != spec.method.get(key)
        )
        found.append(f"has another method ({', '.join(map(quote, differing))} differ)")
    if not found:
        try:
            base = weights.meta_model(weights.load_config(catalog.resolve(spec.model)))
            methods.get(spec.method["name"]).check_saved(base, run.artifact)
        except LabError as error:
            return [Problem("start_from", f"{run.id} cannot be begun with. {error}")]
    return [
        Problem("start_from", f"{run.id} {text}. Use its own model and method to train on.")
        for text in found
    ]
