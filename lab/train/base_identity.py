"""The base of a run is the same in all its attempts, and the one of the weights it begins with."""

from __future__ import annotations

from collections.abc import Callable

from lab import paths
from lab.atomic_files import read_object
from lab.models import catalog, moved_base, weights_hash
from lab.models.catalog import ModelSource
from lab.models.weights_hash import WeightsIdentity
from lab.paths import RunDir
from lab.runs import record_reader
from lab.train.telemetry import Telemetry


def base_source(run: RunDir, model_id: str) -> ModelSource:
    """Where the base of a run lies: under another name, if an earlier attempt knew its weights and
    its folder was moved. Raises LabError."""
    earlier = record_reader.last_event(run, weights_hash.EVENT)
    return catalog.resolve(moved_base.model_of(model_id, earlier))


def identify_base(
    run: RunDir,
    source: ModelSource,
    telemetry: Telemetry,
    check_commands: Callable[[], None],
    init_from_run: str,
) -> WeightsIdentity:
    """What the base is, read before it is loaded; what the first attempt finds becomes an event.

    Raises LabError if it is not the one of earlier attempts, or of the run `init_from_run` (empty
    where a checkpoint has its weights already).
    """
    telemetry.enter_phase("loading")

    def count_bytes(done: int, total: int) -> None:
        telemetry.progress(done // 1_000_000, total // 1_000_000, "MB of the base")
        check_commands()

    base = weights_hash.identify(source, count_bytes)
    recorded = record_reader.last_event(run, weights_hash.EVENT)
    if recorded:
        weights_hash.check(recorded, base, run.id)
    else:
        if record_reader.last_event(run, "data"):  # of an attempt of an earlier version
            telemetry.warn(weights_hash.check(None, base, run.id))
        telemetry.event(weights_hash.EVENT, **base.to_json())
    if init_from_run:
        begun_with = paths.run_dir(init_from_run.removeprefix("run:"))
        receipt = read_object(begun_with.artifact / "receipt.json") or {}
        if note := weights_hash.check(receipt.get("base"), base, init_from_run):
            telemetry.warn(note)
    return base
