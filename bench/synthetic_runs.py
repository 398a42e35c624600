"""Run directories of any length, written as a worker would have, to time those who read them."""

from __future__ import annotations

import json
import math
import os
import time
from typing import Any

from lab import paths, process
from lab.atomic_files import write_json
from lab.paths import RunDir
from lab.spec import RunSpec


def make_run(index: int, steps: int, *, active: bool = False) -> RunDir:
    """A finished run of `steps` logged steps, or one that this process seems to train."""
    began = time.time() - 3600.0 - 60.0 * index
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began))
    run = RunDir(paths.runs() / f"{stamp}-lora-{_suffix(index)}")
    for folder in (run.commands, run.checkpoints):
        paths.make_folder(folder)
    spec = RunSpec.from_json({"name": f"run {index}", "method": {"name": "lora"}})
    write_json(run.spec, {"v": 1, **spec.to_json(), "requested": spec.to_json()}, durable=False)
    with run.metrics.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in _lines(1, steps, began))
    phase = {"v": 1, "kind": "phase", "attempt": 1, "time": began, "phase": "training"}
    run.events.write_text(json.dumps(phase) + "\n", encoding="utf-8")
    run.log.write_text("training\n", encoding="utf-8")
    if active:
        process.register(run, os.getpid())
        beat(run, steps)
    else:
        summary = {"step": steps, "tokens": 512 * steps, "seconds": 0.5 * steps}
        result: dict[str, Any] = {"v": 1, "state": "done", "summary": summary}
        write_json(run.result, result | {"peak_bytes": 2_000_000_000}, durable=False)
    return run


def beat(run: RunDir, step: int) -> None:
    """One more step and heartbeat of a run that seems to be active."""
    with run.metrics.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in _lines(step + 1, step + 1, time.time()))
    state = {"phase": "training", "done": step, "total": 2 * step, "unit": "step", "eta_s": 60}
    write_json(run.heartbeat, state, durable=False)


def _lines(first: int, last: int, began: float) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(first, last + 1):
        shared = {
            "v": 1,
            "attempt": 1,
            "time": began + 0.5 * step,
            "step": step,
            "tokens": 512 * step,
            "seconds": 0.5 * step,
            "flops": 1e9 * step,
        }
        loss = 2.0 + math.exp(-step / 500.0) + 0.1 * math.sin(step)
        figures = {
            "train/loss": loss,
            "train/learning_rate": 1e-4,
            "train/grad_norm": 1.0 + 0.2 * math.cos(step),
            "perf/tokens_per_s": 1024.0,
            "perf/step_s": 0.5,
            "memory/peak_bytes": 2_000_000_000,
        }
        lines.append(shared | {"kind": "train", "loss_tokens": 200 * step, **figures})
        if step % 100 == 0:
            lines.append(shared | {"kind": "eval", "eval/loss": loss + 0.05})
        if step % 2 == 0:
            memory = {"memory/rss_bytes": 2_000_000_000, "phase": "training"}
            lines.append(shared | {"kind": "device", **memory})
    return lines


def _suffix(index: int) -> str:
    letters = "abcdefghijkmnpqrstuvwxyz23456789"
    return "".join(letters[index // len(letters) ** digit % len(letters)] for digit in range(4))
