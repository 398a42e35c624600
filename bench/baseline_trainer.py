"""What the plain recipes share: the model, the arguments of a Trainer, the order and the clock."""

from __future__ import annotations

import json
import time
from typing import Any

from bench.workload import Work, batches_of
from lab import methods


def model(work: Work) -> Any:
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
    if method.saves_whole_model:
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
        "target_modules": spec.method["target_modules"],
    }
    if torch.cuda.is_available():
        model = model.to("cuda") if not method.load_kwargs(config) else model
    return peft.get_peft_model(model, peft.LoraConfig(**settings, task_type="CAUSAL_LM"))


def settings(work: Work, folder: str) -> dict[str, Any]:
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


def in_our_order(kind: type) -> type:
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
            output = super().compute_loss(*arguments, **named)
            loss = output[0] if isinstance(output, tuple) else output
            self.step_losses.append(loss.detach())
            return output

    return InOurOrder


def timed(trainer: Any, work: Work) -> tuple[list[float], Any, int]:
    from transformers import TrainerCallback

    places = iter(range(len(rows(work))))
    trainer.batches = [[next(places) for _ in step] for step in batches(work)]
    trainer.step_losses = []
    watch = Stopwatch(work)

    class AfterSteps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.end_step(state.global_step)

    trainer.add_callback(AfterSteps())
    trainer.train()
    return [float(loss) for loss in trainer.step_losses], watch, 0


class Stopwatch:
    """Times the steps behind the warm ones, the device's work included. A callback of the lab's
    loop; a Trainer learns it from `end_step`."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.seconds = self.cpu_seconds = 0.0

    def end_step(self, step: int) -> None:
        if step == self.work.warm:
            self._began = _now()
        elif step == self.work.all_steps:
            seconds, cpu_seconds = _now()
            self.seconds, self.cpu_seconds = seconds - self._began[0], cpu_seconds - self._began[1]

    def on_train_begin(self, loop: Any) -> None: ...

    def on_step_end(self, loop: Any, result: Any) -> None:
        self.end_step(loop.batches.used.step)

    def on_train_end(self, loop: Any) -> None: ...


def _now() -> tuple[float, float]:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


_known_batches: dict[str, list[list[dict[str, list[int]]]]] = {}


def batches(work: Work) -> list[list[dict[str, list[int]]]]:
    """The sequences of each step; read once for all trials of a case."""
    key = json.dumps(work.with_checkpointing("off").to_json(), sort_keys=True)
    if key not in _known_batches:
        _known_batches[key] = batches_of(work, tokenizer(work))
    return _known_batches[key]


def rows(work: Work) -> list[dict[str, list[int]]]:
    return [example for step in batches(work) for example in step]


def tokenizer(work: Work) -> Any:
    from lab.models import catalog, weights

    return weights.load_tokenizer(catalog.resolve(work.spec.model))
