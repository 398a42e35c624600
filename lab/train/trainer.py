"""The worker's trainer: transformers' Trainer around the lab's own step.

Trainer brings accelerate and with it every device strategy; logging, evaluation, checkpoints
and data order are ours and hang on its public callbacks. One loop trains every method.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from lab.data.batches import Row, Stream, collate
from lab.methods import Method
from lab.spec import RunSpec
from lab.train import flops, schedule
from lab.train.flops import Flops
from lab.train.in_backward import InBackward
from lab.train.optimizer import make_optimizer
from lab.train.schedule import OPEN_END, Plan, Used
from lab.train.step import summed_loss
from lab.train.telemetry import Memory


class Remaining(Dataset[Row]):
    """The rows from `start` to the end of the plan, in training order."""

    def __init__(self, stream: Stream, start: int, end: int) -> None:
        self.stream, self.start, self.end = stream, start, end

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, place: int) -> Row:
        return self.stream[self.start + place]


class LabTrainer(Trainer):
    """Trainer with the lab's step, optimizer groups, schedule and data order."""

    def __init__(
        self,
        model: Any,
        spec: RunSpec,
        method: Method,
        stream: Stream,
        plan: Plan,
        used: Used,
        costs: Flops,
        pad: int,
        memory: Memory,
        folder: Path,
        loss: str,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.run_spec, self.method = spec, method
        self.stream, self.plan, self.used, self.flops_of = stream, plan, used, costs
        self.pad, self.memory = pad, memory
        self.loss_kind = loss
        self.step_losses: list[torch.Tensor] = []
        self.grad_norm: Any = None
        train = spec.train
        per_step = train.batch_size * train.accumulation
        super().__init__(
            model=model,
            args=arguments(spec, folder),
            train_dataset=Remaining(stream, used.step * per_step, plan.rows),
            callbacks=callbacks,
        )
        # our loss is already divided by the tokens of the whole accumulated batch
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def get_train_dataloader(self) -> Any:
        train = self.run_spec.train
        length = self.run_spec.data.max_length if train.compile == "on" else None
        loader = DataLoader(
            self.train_dataset,
            batch_size=train.batch_size,
            collate_fn=lambda rows: self.batch(rows, length),
            pin_memory=torch.cuda.is_available(),
            # a generator of its own: the loader would draw from the global one at each start,
            # and a resumed run would see other dropout masks
            generator=torch.Generator(),
        )
        return self.accelerator.prepare(loader)

    def batch(self, rows: list[Row], length: int | None = None) -> dict[str, Any]:
        """A collated batch, with its rows beside the tensors."""
        # what they cost is counted at their step: the loader reads ahead, and a model may grow
        # before; on a GPU, reading a tensor back would stop the pipeline
        return collate(rows, self.pad, length) | {"rows": rows}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        self.optimizer = make_optimizer(self.model, self.method, self.run_spec)
        return self.optimizer

    def join_new_parameters(self) -> int:
        """Take parameters that have become trainable into the optimizer, at the rate that their
        group has now; how many tensors joined."""
        optimizer, scheduler = self.own_optimizer, self.lr_scheduler
        known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        scale = scheduler.lr_lambdas[0]
        joined = 0
        for group in self.method.param_groups(
            self.model, self.run_spec.method_config, float(self.run_spec.train.learning_rate)
        ):
            new = [weight for weight in group["params"] if id(weight) not in known]
            if not new:
                continue
            rate = group["lr"]
            now = rate * scale(scheduler.last_epoch)
            optimizer.add_param_group(group | {"params": new, "lr": now, "initial_lr": rate})
            scheduler.base_lrs.append(rate)
            scheduler.lr_lambdas.append(scale)
            joined += len(new)
        if joined:
            virtual = self.method.virtual_tokens(self.run_spec.method_config)
            self.flops_of = flops.count(self.model, self.loss_kind, virtual)
        return joined

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        def scale(step: int) -> float:
            fraction = self.plan.fraction(self.used_at(step))
            # a budget of seconds does not know its steps: take each for a five-hundredth
            share = 1.0 / min(self.plan.steps, 500 if self.plan.has_open_end else OPEN_END)
            return schedule.rate(self.run_spec.train, fraction, share)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, scale)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def used_at(self, step: int) -> Used:
        """What is used after `step` steps; called when the counters have just reached it."""
        used = self.used
        return Used(step, used.tokens, used.loss_tokens, used.seconds, used.flops)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.memory.mark("backward")
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        rows = inputs.pop("rows")
        self.used.tokens += sum(row.tokens for row in rows)
        self.used.flops += self.flops_of.of_rows(rows)
        self.used.loss_tokens += inputs["targets"].numel()
        total = summed_loss(
            model, inputs, precision=self.run_spec.train.precision, loss=self.loss_kind
        )
        self.memory.mark("forward")
        loss = total / num_items_in_batch
        self.step_losses.append(loss.detach())
        penalty = self.method.penalty(model, self.run_spec.method_config)
        return loss if penalty is None else loss + penalty / self.run_spec.train.accumulation

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # Trainer's own estimate walks over all parameters; ours is in the batch

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        optimizer = self.own_optimizer
        if isinstance(optimizer, InBackward):
            self.grad_norm = optimizer.take_norm()  # the gradients themselves are gone
        else:
            self.grad_norm = super()._get_grad_norm(model, grad_norm)
        return self.grad_norm

    @property
    def own_optimizer(self) -> Any:
        """The optimizer itself, without accelerate's wrapping."""
        return getattr(self.optimizer, "optimizer", self.optimizer)


def device_batches(
    rows: Sequence[Row], batch_size: int, pad: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of `rows` in order on the device, for evaluation."""
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size], pad)
        yield {key: value.to(device) for key, value in batch.items()}


def arguments(spec: RunSpec, folder: Path) -> TrainingArguments:
    """Trainer's own settings: everything that it would do beside the loop is switched off.

    It makes `folder`, and never writes into it.
    """
    train = spec.train
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        num_train_epochs=1,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        use_cpu=not torch.cuda.is_available(),
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        # the next batch is copied to the GPU while it still works on the one before
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},
    )


class Clock:
    """Seconds of training: runs between `start` and `stop`, over all attempts."""

    def __init__(self, used: Used) -> None:
        self.used = used
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> float:
        """Seconds since the start, added to the run's."""
        passed = time.perf_counter() - (self._since or time.perf_counter())
        self._since = None
        self.used.seconds += passed
        return passed
