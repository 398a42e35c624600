"""The contestants of the speed bench: each does the same trial with its own loop.

`worker` is the lab's own attempt, telemetry and all; `plain` is transformers' Trainer with PEFT, as
most recipes use it; `trl` is SFTTrainer; `liger` is `plain` with Liger's kernels; `unsloth` is its
own model and adapter under SFTTrainer. Each lives in a process of its own, since some of them
change the libraries that they load: `python -m bench.frameworks NAME --answers FD` takes
orders as lines of JSON and answers in the same way.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import baseline_trainer
from bench.workload import Work, make_folder
from lab import devices, host, methods

NEEDS: dict[str, tuple[str, ...]] = {
    "worker": (),
    "plain": (),
    "trl": ("trl", "datasets"),
    "liger": ("liger_kernel",),
    "unsloth": ("unsloth", "trl", "datasets"),
}
ON_GPU_ONLY = ("liger", "unsloth")
# The default of each: the recipes of articles switch checkpointing on, TRL and
# Unsloth do by themselves; the worker does not where memory allows.
DEFAULTS = {"worker": "off", "plain": "on", "trl": "on", "liger": "on", "unsloth": "on"}


def absent(name: str) -> str:
    """Why this contestant cannot take part here; empty if it can."""
    if any(importlib.util.find_spec(package) is None for package in NEEDS[name]):
        return "not installed"
    if name in ON_GPU_ONLY and not host.gpus():
        return "needs a GPU"
    return ""


def trial(name: str, work: Work) -> dict[str, Any]:
    """Do `work` from the start: {"losses", "tokens", "seconds", "cpu_seconds", "peak_bytes"}.

    `losses` are those of all steps in nats a counted token; `tokens`, `seconds` and `cpu_seconds`
    are of the timed steps alone, padding not counted; the peak is the device's, on a CPU what the
    process took beyond what it held before.
    """
    import torch

    from lab.train.telemetry import resident_peak_bytes

    _free()
    before = _forget_peak()
    losses, watch, peak = CONTESTANTS[name](work)
    if torch.cuda.is_available():
        peak = peak or torch.cuda.max_memory_allocated()
    else:
        peak = resident_peak_bytes() - before
    timed = baseline_trainer.batches(work)[work.warm :]
    tokens = sum(len(example["input_ids"]) for step in timed for example in step)
    return {
        "losses": losses,
        "tokens": tokens,
        "seconds": watch.seconds,
        "cpu_seconds": watch.cpu_seconds,
        "peak_bytes": peak,
    }


def _worker(work: Work) -> tuple[list[float], Any, int]:
    from lab.atomic_files import write_json
    from lab.paths import RunDir
    from lab.runs import record_reader
    from lab.train.attempt import Attempt
    from lab.train.telemetry import Telemetry, device_stats_reader

    with tempfile.TemporaryDirectory(prefix="lab-speed-") as folder:
        run = RunDir(Path(folder))
        for part in (run.commands, run.checkpoints):
            part.mkdir()
        write_json(run.spec, work.spec.to_json())
        telemetry = Telemetry(run, 1)
        telemetry.start(device_stats_reader(run, uses_gpu=False))
        try:
            attempt = Attempt(run, work.spec, telemetry)
            loop = attempt.prepare().loop
            watch = baseline_trainer.Stopwatch(work)
            loop.callbacks.append(watch)
            loop.run()
        finally:
            telemetry.stop()
        losses = [record["train/loss"] for record in record_reader.metrics(run, "train")]
        return losses, watch, attempt.memory.peak_bytes


def _plain(work: Work, **extra: Any) -> tuple[list[float], Any, int]:
    from transformers import Trainer, TrainingArguments

    model, tokenizer = baseline_trainer.model(work), baseline_trainer.tokenizer(work)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        fills = {"input_ids": tokenizer.pad_token_id, "labels": -100}
        batch = {
            key: torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in rows])
            for key, fill in fills.items()
        }
        lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
        return batch | {"attention_mask": (torch.arange(width) < lengths).long()}

    with tempfile.TemporaryDirectory(prefix="lab-speed-") as folder:
        trainer = baseline_trainer.in_our_order(Trainer)(
            model=model,
            args=TrainingArguments(**baseline_trainer.settings(work, folder), **extra),
            train_dataset=baseline_trainer.rows(work),
            data_collator=collate,
        )
        return baseline_trainer.timed(trainer, work)


def _liger(work: Work) -> tuple[list[float], Any, int]:
    return _plain(
        work, use_liger_kernel=True, liger_kernel_config={"fused_linear_cross_entropy": True}
    )


def _trl(work: Work) -> tuple[list[float], Any, int]:
    import trl

    return _sft(trl, baseline_trainer.model(work), work)


def _sft(trl: Any, model: Any, work: Work) -> tuple[list[float], Any, int]:
    import datasets

    with tempfile.TemporaryDirectory(prefix="lab-speed-") as folder:
        trainer = baseline_trainer.in_our_order(trl.SFTTrainer)(
            model=model,
            args=trl.SFTConfig(
                **baseline_trainer.settings(work, folder),
                max_length=work.spec.data.max_length,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=datasets.Dataset.from_list(baseline_trainer.rows(work)),
            processing_class=baseline_trainer.tokenizer(work),
        )
        return baseline_trainer.timed(trainer, work)


def _unsloth(work: Work) -> tuple[list[float], Any, int]:
    import trl
    import unsloth
    from transformers import set_seed

    spec = work.spec
    checkpointing = "unsloth" if spec.train.activation_checkpointing == "on" else False
    method = methods.get(spec.method["name"])
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        spec.model,
        max_seq_length=spec.data.max_length,
        load_in_4bit=bool(method.load_kwargs(spec.method_config)),
        full_finetuning=method.saves_whole_model,
        use_gradient_checkpointing=checkpointing,
        local_files_only=True,
    )
    if not method.saves_whole_model:
        set_seed(spec.train.seed)
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=spec.method["rank"],
            lora_alpha=spec.method["alpha"],
            lora_dropout=0.0,
            target_modules=[
                *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
            ],
            use_gradient_checkpointing=checkpointing,
            random_state=spec.train.seed,
        )
    return _sft(trl, model, work)


CONTESTANTS: dict[str, Callable[[Work], tuple[list[float], Any, int]]] = {
    "worker": _worker,
    "plain": _plain,
    "trl": _trl,
    "liger": _liger,
    "unsloth": _unsloth,
}


def _free() -> None:
    """Give back what the trial before has left, to the system and to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ctypes.CDLL(None).malloc_trim(0)


def _forget_peak() -> int:
    """Begin a new high-water mark of resident memory; what is resident now."""
    from lab.train.telemetry import resident_bytes

    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        print("note: this kernel keeps the process's highest memory, peaks are of all trials")
    return resident_bytes()


def _import(name: str) -> None:
    """What the contestant needs, so that no trial waits for it."""
    if name == "unsloth":
        import unsloth  # noqa: F401  first: it changes what the others define
    if name in ("trl", "unsloth"):
        from trl import SFTTrainer  # noqa: F401
    import peft  # noqa: F401

    import lab.train.attempt  # noqa: F401


def serve(name: str, answers: Any) -> None:
    """Import what the contestant needs, say so, and do orders until the input ends."""
    from lab.train.telemetry import keep_freed_memory

    if name == "worker":
        keep_freed_memory()  # as the worker's own process does

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        _import(name)
    except ImportError as error:
        traceback.print_exc()
        answer({"missing": f"installed, but it does not load: {error}"})
        return
    from transformers.utils import logging  # behind what wants to be imported before it

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    answer({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "make":
                make_folder(Path(order["folder"]), order["shape"], order["rows"], order["length"])
                answer({"made": True})
            else:
                answer(trial(name, Work.from_json(order["work"])))
        except Exception as error:
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    devices.pin(host.gpus())
    with os.fdopen(int(sys.argv[3]), "w", encoding="utf-8") as file:
        serve(sys.argv[1], file)
