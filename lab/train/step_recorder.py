"""The record of each step in `metrics.jsonl`, written one step later on a GPU."""

from __future__ import annotations

import math
from typing import Any

import torch

from lab.errors import LabError
from lab.train.loop import StepResult, TrainingLoop
from lab.train.telemetry import PeakMemory, Telemetry

SHOWN_ROWS = 12  # of a step whose loss is not finite
MUST_BE_FINITE = {"train/loss": "training loss", "train/grad_norm": "gradient norm"}


class StepRecorder:
    """Writer of one `train` record per step: losses, amounts so far, speed and peak memory.

    On a GPU the losses are copied once the step is through and read one step later, so that the
    host prepares the next step meanwhile. `peak_flops`: of the device, per second, for MFU.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        telemetry: Telemetry,
        memory: PeakMemory,
        peak_flops: float | None = None,
    ) -> None:
        self.loop, self.telemetry, self.memory = loop, telemetry, memory
        self.peak_flops = peak_flops
        self._pending: dict[str, Any] | None = None
        self._copied: torch.cuda.Event | None = None  # the losses of the pending record
        used = loop.batches.used
        self._before = {"tokens": float(used.tokens), "flops": used.flops}

    def add(self, step_s: float, result: StepResult) -> None:
        """Queue the record of the step that has ended, which took `step_s` seconds."""
        self.flush()
        used = self.loop.batches.used
        self._pending = {
            "step": used.step,
            "tokens": used.tokens,
            "loss_tokens": used.loss_tokens,
            "seconds": used.seconds,
            "flops": used.flops,
            "train/loss": result.losses.to("cpu", non_blocking=True),
            "train/grad_norm": result.grad_norm.to("cpu", non_blocking=True),
            "train/learning_rate": self.loop.optimizer.param_groups[0]["lr"],
            "perf/step_s": step_s,
            "memory/peak_bytes": self.memory.peak_bytes,
        }
        self.telemetry.seconds, self.telemetry.step_s = used.seconds, step_s
        if self.memory.on_gpu:
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self.flush()

    def wait_for_pending(self) -> None:
        """Wait until a GPU has worked the step whose record is queued, and no longer."""
        if self._copied is not None:
            self._copied.synchronize()

    def flush(self) -> None:
        """Write the queued record. Raises LabError if its loss or gradient norm is not finite."""
        record, self._pending = self._pending, None
        if record is None:
            return
        self.wait_for_pending()
        record["train/loss"] = sum(record["train/loss"].tolist())
        record = {
            key: value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
            for key, value in record.items()
        }
        before = self._before
        step_s = max(record["perf/step_s"], 1e-9)
        record["perf/tokens_per_s"] = (record["tokens"] - before["tokens"]) / step_s
        if self.peak_flops:
            record["perf/mfu"] = (record["flops"] - before["flops"]) / step_s / self.peak_flops
        self._before = {key: record[key] for key in before}
        self.telemetry.metric("train", **record)
        for name, title in MUST_BE_FINITE.items():
            if not math.isfinite(record[name]):
                raise LabError(
                    f"The {title} became {record[name]} at step {record['step']}, on "
                    f"{self._rows_of(record['step'])} of the dataset.",
                    "Lower train.learning_rate, or look at these rows; the last checkpoint is "
                    "intact.",
                )

    def _rows_of(self, step: int) -> str:
        """The rows of the dataset's file that a step learned from."""
        micro_batches = self.loop.batches.sequences(step)
        records = {source for rows in micro_batches for row in rows for source in row.sources}
        shown = ", ".join(map(str, sorted(records)[:SHOWN_ROWS]))
        return f"rows {shown}{' and others' if len(records) > SHOWN_ROWS else ''}"
