"""Whole attempts of the worker, checked before as a page does and measured: every method, and every
optimizer with the standard ones.

`bench memory` makes bare steps; here are loading, evaluations, checkpoints and the proof of the
result, each with its peak. One process makes all attempts, on a GPU, on a model of random weights.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.workload import make_folder
from lab import methods, optimizers
from lab.errors import LabError
from lab.models.weights import first_line
from lab.runs import actions, record_reader

STEPS = 4
ROWS, LENGTH = 4, 512


def cases(only: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(method, optimizer) of each attempt; `only` those of these methods. Raises LabError for a
    method that does not exist."""
    for name in only:
        methods.get(name)
    pairs = [(method.name, "adamw") for method in methods.all_methods()]
    standard = [method.name for method in methods.all_methods() if method.is_standard]
    pairs += [
        (method, rule) for rule in optimizers.OPTIMIZERS for method in standard if rule != "adamw"
    ]
    return [pair for pair in pairs if not only or pair[0] in only]


@contextmanager
def home_with_model(shape: str) -> Iterator[Path]:
    """A LAB_HOME of its own, and in it the folder of a model of random weights with its data."""
    before = os.environ.get("LAB_HOME")
    with tempfile.TemporaryDirectory(prefix="lab-attempts-") as folder:
        os.environ["LAB_HOME"] = folder
        try:
            make_folder(Path(folder) / "model", shape, rows=STEPS * ROWS * 4, length=LENGTH)
            yield Path(folder) / "model"
        finally:
            if before is None:
                del os.environ["LAB_HOME"]
            else:
                os.environ["LAB_HOME"] = before


def measure(
    model: Path, method: str, optimizer: str, say: Callable[[str], object]
) -> dict[str, Any]:
    """One attempt: peaks predicted and measured by phase, their error, the losses, and what the
    run warned of. `failed` where it ended with an error, `problems` where it was refused."""
    from lab.preflight.validate import check

    row: dict[str, Any] = {"method": method, "optimizer": optimizer}
    result = check(_spec(model, method, optimizer))
    if result.run is None:
        return row | {"problems": [str(problem.message) for problem in result.problems]}
    gc.collect()  # what the attempt before has left behind in cycles
    memory = result.run.forecast.memory
    run = actions.create_run_dir(result.run)
    try:
        summary = _train(run)
    except Exception as error:  # any library's: the next attempt is made all the same
        return row | {"failed": f"{type(error).__name__}: {first_line(error)}"}
    row |= {
        "predicted": memory.peak_bytes,
        "measured": summary.peak_bytes,
        "error": memory.peak_bytes / summary.peak_bytes - 1,
        "phases": dataclasses.asdict(memory.phases) if memory.phases else {},
        "peaks": summary.peaks,
        "how": memory.how.value,
        "losses": [record["train/loss"] for record in record_reader.metrics(run, "train")],
        "warnings": [each["message"] for each in record_reader.events(run, "warning")],
    }
    say(f"{method}, {optimizer}: {row['error']:+.2%}")
    return row


def _spec(model: Path, method: str, optimizer: str) -> dict[str, Any]:
    in_backward = optimizers.get(optimizer).in_backward
    return {
        "name": f"{method} {optimizer}",
        "model": str(model),
        "method": {"name": method},
        "data": {"dataset": str(model / "chats.jsonl"), "max_length": LENGTH},
        "train": {
            "optimizer": optimizer,
            "batch_size": ROWS,
            "max_steps": STEPS,
            "eval_steps": STEPS // 2,
            "save_steps": STEPS // 2,
            "sample_steps": 0,
            "compile": "off",
            **({"max_grad_norm": 0} if in_backward else {}),
        },
    }


def _train(run: Any) -> Any:
    """The summary of the run's one attempt, made in this process."""
    import torch

    from lab.spec import RunSpec
    from lab.train.attempt import Attempt
    from lab.train.telemetry import Telemetry, device_stats_reader

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    telemetry = Telemetry(run, 1)
    telemetry.start(device_stats_reader(run, uses_gpu=on_gpu))
    try:
        attempt = Attempt(run, RunSpec.of_run(run), telemetry)
        attempt.run_training()
    finally:
        telemetry.stop()
    return attempt.summary


def check_machine() -> None:
    """Raise LabError without a GPU: a processor's peak is that of all that the process holds."""
    import torch

    if not torch.cuda.is_available():
        raise LabError(
            "Whole attempts are measured on a GPU, and there is none here.",
            "`python -m lab bench rows` measures the steps of runs on a CPU.",
        )
