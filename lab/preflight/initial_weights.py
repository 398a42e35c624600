"""Whether a run can begin with the result of another one."""

from __future__ import annotations

from lab import methods, paths
from lab.atomic_files import part, read_object
from lab.errors import LabError, Problem
from lab.hub import repository
from lab.models import catalog, weights, weights_hash
from lab.models.catalog import ModelSource
from lab.models.empty_model import meta_model
from lab.paths import RunDir
from lab.schema import quote
from lab.spec import RunSpec


def problems(spec: RunSpec) -> list[Problem]:
    """What keeps `spec.init_from_run` from being the start of this run; empty if nothing does."""
    if not spec.init_from_run:
        return []
    kind, _, run_id = spec.init_from_run.partition(":")
    try:
        if kind != "run":
            raise LabError(f"'{quote(spec.init_from_run)}' names no result.", "Write run:ID.")
        run = paths.run_dir(run_id)
    except LabError as error:
        return [Problem("init_from_run", str(error))]
    if not (run.artifact / "receipt.json").is_file():
        return [
            Problem("init_from_run", f"{run.id} has no result yet. Wait until it ends, or stop it.")
        ]
    try:
        done = RunSpec.of_run(run)
        differences = _another_base(run, done, catalog.resolve(spec.model))
    except LabError as error:
        return [Problem("init_from_run", str(error))]
    if done.method != spec.method:
        differing = sorted(
            key
            for key in done.method.keys() | spec.method.keys()
            if done.method.get(key) != spec.method.get(key)
        )
        differences.append(f"has another method ({', '.join(map(quote, differing))} differ)")
    if not differences:
        try:
            base = meta_model(weights.load_config(catalog.resolve(spec.model)))
            methods.get(spec.method["name"]).check_saved(base, run.artifact)
        except LabError as error:
            return [Problem("init_from_run", f"{run.id} cannot be begun with. {error}")]
    return [
        Problem("init_from_run", f"{run.id} {text}. Use its own model and method to train on.")
        for text in differences
    ]


def base_of(spec: RunSpec) -> ModelSource | None:
    """The base, at its commit, of the run that `spec` begins with; None without one, or for a base
    that is no model of the hub. What is wrong with `init_from_run` is told by `problems`."""
    try:
        run = paths.run_dir(spec.init_from_run.removeprefix("run:"))
        recorded = part(read_object(run.artifact / "receipt.json"), "base")
        model = repository.at_commit(RunSpec.of_run(run).model, recorded.get("commit"))
        source = catalog.resolve(model)
    except LabError:
        return None
    return source if source.is_on_hub else None


def _another_base(run: RunDir, done: RunSpec, source: ModelSource) -> list[str]:
    """What is wrong with `source` as the base of `run`'s weights. Raises LabError, with both
    hashes, if it lies under the same name and holds others; large ones are left to the worker."""
    recorded = (read_object(run.artifact / "receipt.json") or {}).get("base")
    now = weights_hash.identify_quickly(source) if recorded else None
    if now is not None:
        weights_hash.check(recorded, now, f"run:{run.id}")
        return []  # the same weights, wherever they lie
    begun_on = base_of(RunSpec(model=source.id, init_from_run=f"run:{run.id}"))
    trained = begun_on.id if begun_on else done.model
    if trained != source.id:
        return [f"trained {quote(trained)}, this one {quote(source.id)}"]
    return []
