"""The checkpoint that an attempt goes on from."""

from __future__ import annotations

from lab.errors import LabError
from lab.formatting import quantity
from lab.paths import RunDir
from lab.runs import resume_settings
from lab.train import checkpoint
from lab.train.checkpoint import Checkpoint
from lab.train.telemetry import Telemetry


def newest_checkpoint(run: RunDir, telemetry: Telemetry) -> Checkpoint | None:
    """The newest whole checkpoint of the run, None for one that begins. What was skipped, what is
    missing and what was changed on resuming become warnings. Raises LabError if none is whole."""
    may_lack = resume_settings.takes_incomplete(run)
    saved, skipped = checkpoint.latest_valid(run.checkpoints, incomplete=may_lack)
    for reason in skipped:
        telemetry.warn(f"Skipped a checkpoint: {reason}")
    if saved is None and skipped:
        raise LabError(
            f"None of {quantity(len(skipped), 'checkpoint')} is complete: {' '.join(skipped)}",
            "Resume with '--incomplete' to continue from the newest weights without the lost "
            "optimizer or RNG state, or start a new run.",
        )
    if saved is not None and saved.missing_files:
        telemetry.warn(
            f"{saved.path.name} is missing {', '.join(saved.missing_files)}; that state is reset, "
            "so the result differs from an uninterrupted run."
        )
    changes = resume_settings.describe_changes(run)
    if saved is not None and changes:
        telemetry.warn(
            f"Settings changed from step {saved.step} on: {changes}. The result differs from an "
            "uninterrupted run."
        )
    return saved
