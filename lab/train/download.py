"""Bring what a run reads from the Hub to this machine, as a phase of its own before loading."""

from __future__ import annotations

import time
from collections.abc import Callable

from lab import formatting
from lab.atomic_files import part, read_object
from lab.data import catalog as datasets
from lab.data import hub as dataset_hub
from lab.data import hub_fetch
from lab.errors import Cancelled
from lab.hub.branches import BranchWatch
from lab.hub.progress import DownloadProgress
from lab.models import hub
from lab.models.catalog import ModelSource
from lab.paths import RunDir
from lab.spec import RunSpec
from lab.train.telemetry import Telemetry

PHASE = "downloading"
EVENT = "download"  # what was fetched, and how long it took
ASKED_S = 3.0  # for the Hub's word on branches, which nothing waits for


def fetch_base(
    source: ModelSource, telemetry: Telemetry, check_commands: Callable[[], None]
) -> None:
    """Have the model of `source` in the cache, whole and verified. Raises LabError; Cancelled with
    what is kept."""
    if not source.is_on_hub:
        return
    started = time.monotonic()
    last: list[DownloadProgress] = []

    def tell(progress: DownloadProgress) -> None:
        last[:] = [progress]
        telemetry.enter_phase(PHASE)
        telemetry.progress(
            progress.done,
            progress.total,
            "byte",
            progress.eta_s,
            files=progress.files,
            files_done=progress.files_done,
            bytes_per_s=round(progress.bytes_per_s),
            note=progress.in_words(),
        )
        check_commands()

    try:
        hub.local_folder(source, with_weights=True, tell=tell)
    except Cancelled as ended:
        if last and last[0].done < last[0].total:
            ended.kept_download = (
                f"{formatting.size(last[0].done)} of {formatting.size(last[0].total)} of "
                f"'{source.location}'"
            )
        raise
    seconds = time.monotonic() - started
    fetched = last[0].received if last else 0
    if fetched:
        telemetry.event(
            EVENT, model=source.id, bytes=fetched, seconds=round(seconds, 1), files=last[0].files
        )


def fetch_data(spec: RunSpec, telemetry: Telemetry, check_commands: Callable[[], None]) -> None:
    """Fetch the sets of the spec that were here at the check and are gone. Raises LabError."""
    for dataset_id in (spec.data.dataset, spec.data.eval_dataset, spec.data.general_dataset):
        if not isinstance(dataset_id, str) or not datasets.is_on_hub(dataset_id):
            continue
        wanted = dataset_hub.parse(dataset_id)
        if not wanted.file.is_file():
            telemetry.enter_phase(PHASE)
            hub_fetch.fetch(wanted, check_commands)


def watch_branches(run: RunDir, spec: RunSpec, source: ModelSource) -> BranchWatch:
    """Ask whether the branches that the run was set up with have moved on since its check."""
    requested = RunSpec.requested(read_object(run.spec) or {}) or {}
    model = str(requested.get("model") or "")
    dataset = str(part(requested, "data").get("dataset") or "")

    def ask_of_data() -> str:
        if not datasets.is_on_hub(spec.data.dataset):
            return ""
        return dataset_hub.moved_on(dataset_hub.parse(spec.data.dataset), dataset)

    return BranchWatch(lambda: hub.moved_on(source, model), ask_of_data)
