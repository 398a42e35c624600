"""The contestants of the speed bench: each does the same trial with its own loop.

`worker` is the lab's own attempt, telemetry and all; `plain` is transformers' Trainer with PEFT, as
most recipes use it; `trl` is SFTTrainer; `liger` is `plain` with Liger's kernels; `unsloth` is its
own model and adapter under SFTTrainer. Each lives in a process of its own, since some of them
change the libraries that they load: `python -m lab.bench.contestants NAME --answers FD` takes
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
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import machine, methods
from lab.bench.workload import Work, batches_of, make_folder
from lab.train.telemetry import keep_freed_memory, resident_bytes, resident_peak_bytes

NEEDS: dict[str, tuple[str, ...]] = {
    "worker": (),
    "plain": (),
    "trl": ("trl", "datasets"),
    "liger": ("liger_kernel",),
    "unsloth": ("unsloth", "trl", "datasets"),
}
ON_GPU_ONLY = ("liger", "unsloth")
# What each does where nobody chooses: the recipes of articles switch checkpointing on, TRL and
# Unsloth do by themselves; the worker does not where memory allows.
DEFAULTS = {"worker": "off", "plain": "on", "trl": "on", "liger": "on", "unsloth": "on"}


def absent(name: str) -> str:
    """Why this contestant cannot take part here; empty if it can."""
    if any(importlib.util.find_spec(package) is None for package in NEEDS[name]):
        return "not installed"
    if name in ON_GPU_ONLY and not machine.gpus():
        return "needs a GPU"
    return ""


def trial(name: str, work: Work) -> dict[str, Any]:
    """Do `work` from the start: {"losses", "tokens", "seconds", "cpu_seconds", "peak_bytes"}.

    `losses` are those of all steps in nats a counted token; `tokens`, `seconds` and `cpu_seconds`
    are of the timed steps alone, padding not counted; the peak is the device's, on a CPU what the
    process took beyond what it held before.
    """
    import torch

    _free()
    before = _forget_peak()
    losses, watch, peak = CONTESTANTS[name](work)
    if torch.cuda.is_available():
        peak = peak or torch.cuda.max_memory_allocated()
    else:
        peak = resident_peak_bytes() - before
    tokens = sum(len(one["input_ids"]) for step in _batches(work)[work.warm :] for one in step)
    return {
        "losses": losses,
        "tokens": tokens,
        "seconds": watch.seconds,
        "cpu_seconds": watch.cpu_seconds,
        "peak_bytes": peak,
    }


def _worker(work: Work) -> tuple[list[float], Any, int]:
    from lab.paths import RunDir
    from lab.runs import history
    from lab.train.attempt import Attempt
    from lab.train.telemetry import Telemetry, sampler

    with tempfile.TemporaryDirectory(prefix="lab-speed-") as folder:
        run = RunDir(Path(folder))
        for part in (run.commands, run.checkpoints):
            part.mkdir()
        telemetry = Telemetry(run, 1)
        telemetry.start(sampler(run, uses_gpu=False))
        try:
            attempt = Attempt(run, work.spec, telemetry)
            trainer = attempt.ready().trainer
            watch = _stopwatch(work)
            trainer.add_callback(watch)
            trainer.train()
        finally:
            telemetry.stop()
        losses = [record["train/loss"] for record in history.metrics(run, "train")]
        return losses, watch, attempt.memory.peak_bytes


def _plain(work: Work, **extra: Any) -> tuple[list[float], Any, int]:
    from transformers import Trainer, TrainingArguments

    model, tokenizer = _model(work), _tokenizer(work)

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
        trainer = _in_our_order(Trainer)(
            model=model,
            args=TrainingArguments(**_settings(work, folder), **extra),
            train_dataset=_rows(work),
            data_collator=collate,
        )
        return _timed(trainer, work)


def _liger(work: Work) -> tuple[list[float], Any, int]:
    return _plain(
        work, use_liger_kernel=True, liger_kernel_config={"fused_linear_cross_entropy": True}
    )


def _trl(work: Work) -> tuple[list[float], Any, int]:
    import trl

    return _sft(trl, _model(work), work)


def _sft(trl: Any, model: Any, work: Work) -> tuple[list[float], Any, int]:
    import datasets

    with tempfile.TemporaryDirectory(prefix="lab-speed-") as folder:
        trainer = _in_our_order(trl.SFTTrainer)(
            model=model,
            args=trl.SFTConfig(
                **_settings(work, folder),
                max_length=work.spec.data.max_length,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=datasets.Dataset.from_list(_rows(work)),
            processing_class=_tokenizer(work),
        )
        return _timed(trainer, work)


def _unsloth(work: Work) -> tuple[list[float], Any, int]:
    import trl
    import unsloth
    from transformers import set_seed

    spec = work.spec
    checkpointing = "unsloth" if spec.train.activation_checkpointing == "on" else False
    is_full = spec.method["name"] == "full"
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        spec.model,
        max_seq_length=spec.data.max_length,
        load_in_4bit=spec.method["name"] == "qlora",
        full_finetuning=is_full,
        use_gradient_checkpointing=checkpointing,
        local_files_only=True,
    )
    if not is_full:
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


def _model(work: Work) -> Any:
    """The base with the method applied as a plain script would; weights and adapters begin as the
    worker's do."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    spec = work.spec
    method, config = methods.get(spec.method["name"]), spec.method_config
    is_wide = spec.train.precision == "float32"
    model = AutoModelForCausalLM.from_pretrained(
        spec.model,
        dtype=torch.float32 if is_wide else torch.bfloat16,
        use_safetensors=True,
        trust_remote_code=False,
        **method.load_kwargs(config),
    )
    set_seed(spec.train.seed)
    if spec.method["name"] == "full":
        return model
    if method.load_kwargs(config):
        # as QLoRA's own recipe does, copies in float32 included
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=spec.train.activation_checkpointing == "on"
        )
        set_seed(spec.train.seed)
    settings = {
        "r": spec.method["rank"],
        "lora_alpha": int(spec.method["alpha"]),
        "lora_dropout": spec.method["dropout"],
        "target_modules": spec.method["targets"],
    }
    if torch.cuda.is_available():
        model = model.to("cuda") if not method.load_kwargs(config) else model
    return peft.get_peft_model(model, peft.LoraConfig(**settings, task_type="CAUSAL_LM"))


def _settings(work: Work, folder: str) -> dict[str, Any]:
    """The arguments that every Trainer has. Checkpointing goes by its older name, which TRL and
    transformers before 5.23 know; the newer ones still take it."""
    import torch

    train = work.spec.train
    is_on = train.activation_checkpointing == "on"
    return {
        "output_dir": folder,
        "per_device_train_batch_size": train.batch_size,
        "max_steps": work.all_steps,
        "learning_rate": float(train.learning_rate),
        "lr_scheduler_type": "constant",
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": "adamw_torch_fused",
        "bf16": train.precision != "float32",
        "use_cpu": not torch.cuda.is_available(),
        "seed": train.seed,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "gradient_checkpointing": is_on,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if is_on else None,
    }


def _in_our_order(kind: type) -> type:
    """`kind` of Trainer with the batches in the order that the worker takes them in, keeping the
    loss of each step; all else is its own."""
    from torch.utils.data import DataLoader

    class InOurOrder(kind):  # type: ignore[misc]
        batches: list[list[int]]

        def get_train_dataloader(self) -> Any:
            loader = DataLoader(
                self.train_dataset,
                batch_sampler=self.batches,
                collate_fn=self.data_collator,
                pin_memory=self.args.dataloader_pin_memory and not self.args.use_cpu,
            )
            return self.accelerator.prepare(loader)

        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            found = super().compute_loss(*arguments, **named)
            loss = found[0] if isinstance(found, tuple) else found
            self.step_losses.append(loss.detach())
            return found

    return InOurOrder


def _timed(trainer: Any, work: Work) -> tuple[list[float], Any, int]:
    places = iter(range(len(_rows(work))))
    trainer.batches = [[next(places) for _ in step] for step in _batches(work)]
    trainer.step_losses = []
    watch = _stopwatch(work)
    trainer.add_callback(watch)
    trainer.train()
    return [float(loss) for loss in trainer.step_losses], watch, 0


def _stopwatch(work: Work) -> Any:
    """A callback that times the steps behind the warm ones, the device's work included."""
    import torch
    from transformers import TrainerCallback

    def now() -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    class Stopwatch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == work.warm:
                self.began = now()
            elif state.global_step == work.all_steps:
                end = now()
                self.seconds, self.cpu_seconds = (end[0] - self.began[0], end[1] - self.began[1])

    return Stopwatch()


_known_batches: dict[str, list[list[dict[str, list[int]]]]] = {}


def _batches(work: Work) -> list[list[dict[str, list[int]]]]:
    """The sequences of each step; read once for all trials of a case."""
    key = json.dumps(work.with_checkpointing("off").to_json(), sort_keys=True)
    if key not in _known_batches:
        _known_batches[key] = batches_of(work, _tokenizer(work))
    return _known_batches[key]


def _rows(work: Work) -> list[dict[str, list[int]]]:
    return [one for step in _batches(work) for one in step]


def _tokenizer(work: Work) -> Any:
    from lab.models import catalog, weights

    return weights.load_tokenizer(catalog.resolve(work.spec.model))


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
    with os.fdopen(int(sys.argv[3]), "w", encoding="utf-8") as file:
        serve(sys.argv[1], file)
