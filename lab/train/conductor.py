"""What happens between steps: records, evaluation, checkpoints, and a person's commands."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback

from lab import text
from lab.data.batches import Row
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import checkpoints
from lab.spec import RunSpec
from lab.train import checkpoint
from lab.train.checkpoint import Saved
from lab.train.commands import Commands
from lab.train.sample import Sampler
from lab.train.step import evaluation_loss
from lab.train.telemetry import Memory, Telemetry, tensor_bytes
from lab.train.trainer import Clock, LabTrainer, device_batches

EVALUATIONS = 10  # in a run, where the spec leaves it open
SAVES = 5
SAMPLES = 2
DIVERGED = 1.3  # times the best evaluation loss
ROOM_BYTES = 50_000_000  # left free on the disk beside a checkpoint
STOP_S = 60.0  # that an evaluation may still take once a person has said stop


class TakesTooLong(Exception):
    """An evaluation goes on for longer than who said stop should wait."""


class Conductor(TrainerCallback):
    """Hangs on Trainer's callbacks; `trainer` is set once it exists."""

    trainer: LabTrainer
    clock: Clock

    def __init__(
        self,
        run: RunDir,
        spec: RunSpec,
        telemetry: Telemetry,
        memory: Memory,
        commands: Commands,
        held_out: Sequence[Row],
        resumed: Saved | None,
        peak_flops: float | None,
        sampler: Sampler,
    ) -> None:
        self.run, self.spec, self.telemetry, self.memory = run, spec, telemetry, memory
        self._parts_are_said = False
        self.commands, self.held_out, self.resumed = commands, held_out, resumed
        self.peak_flops, self.sampler = peak_flops, sampler
        self.ended_by: str | None = None
        self.eval_loss: float | None = None
        self._random_pending = resumed is not None
        self._pending: dict[str, Any] | None = None
        self._before: dict[str, float] = {}
        kept = resumed.state if resumed is not None else {}
        self.best_loss = float(kept.get("best_loss", math.inf))
        self.not_better = int(kept.get("not_better", 0))
        self._has_warned = False
        self._marks = (0, 0, 0)
        self.rate = 0.0
        self._begun, self._begun_at = 0.0, 0.0

    # -- Trainer's callbacks ------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        self.clock = Clock(trainer.used)
        self._before = {"tokens": trainer.used.tokens, "flops": trainer.used.flops}
        if self.resumed is not None:
            step = trainer.used.step
            optimizer = trainer.own_optimizer
            if checkpoint.OPTIMIZER not in self.resumed.lost:
                checkpoint.load_optimizer(self.resumed.path, trainer.model, optimizer)
            scheduler = trainer.lr_scheduler
            scheduler.last_epoch = step
            for group, base, scale in zip(
                optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * scale(step)
            state.global_step = step
        state.max_steps = trainer.plan.steps
        self._marks = self._passed()
        self._begun, self._begun_at = time.monotonic(), trainer.plan.fraction(trainer.used)
        self.telemetry.enter("training")
        self._report_progress()
        self.clock.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._random_pending and self.resumed is not None:
            if checkpoint.EXTRA not in self.resumed.lost:
                checkpoint.restore_random(self.resumed)
            self._random_pending = False

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.telemetry.sign()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rate = self.trainer.optimizer.param_groups[0]["lr"]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.method.after_step(trainer.model, self.spec.method_config, state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.memory.mark("optimizer")
        self._measure_parts()
        step_s = self.clock.stop()
        trainer = self.trainer
        trainer.used.step = state.global_step
        method, config = trainer.method, self.spec.method_config
        self._record(step_s)
        self._report_progress()
        wish = self.commands.take()
        is_last = (
            state.global_step >= trainer.plan.steps or trainer.plan.fraction(trainer.used) >= 1
        )
        if wish == "cancel":
            self.ended_by, control.should_training_stop = "cancelled", True
            return
        if wish == "stop" and not is_last:
            self.ended_by, control.should_training_stop = "stopped", True
        passed = self._passed()
        eval_due = self._due(self.spec.train.eval_every, 0, passed)
        save_due = self._due(self.spec.train.save_every, 1, passed)
        sample_due = self._due(self.spec.train.sample_every, 2, passed)
        self._marks = passed
        if self.held_out and (is_last or self.ended_by or eval_due):
            loss = self.evaluate()
            if loss is not None:
                method.on_evaluate(trainer.model, config, state.global_step, loss)
                is_last = self._stops_early(loss) or is_last
                self._warn_of_divergence(loss)
        if method.grows:
            self._let_join()
        if sample_due or (is_last and self.spec.train.sample_every != 0):
            self.telemetry.enter("evaluating")
            self.sampler.sample(trainer.model, state.global_step)
        if self.ended_by is None and not is_last and self.commands.look() == "stop":
            self.ended_by, control.should_training_stop = "stopped", True  # not one more step
        if not is_last and (self.ended_by or save_due or wish == "save"):
            self.save()
        if is_last:
            control.should_training_stop = True
        if not control.should_training_stop:
            self.telemetry.enter("training")
            self._report_progress()
        self.clock.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._flush()

    # -- what they do -------------------------------------------------------------------

    def _measure_parts(self) -> None:
        """After the first step of an attempt: what the tensors of each kind really take."""
        if self._parts_are_said:
            return
        self._parts_are_said = True
        trainer = self.trainer
        self.telemetry.event(
            "memory", **tensor_bytes(trainer.model, trainer.optimizer), peaks=self.memory.peaks
        )

    def evaluate(self) -> float | None:
        """Held-out loss of the model as it is now, recorded at the current step; None if it takes
        too long for a person who has said stop."""
        self.telemetry.enter("evaluating")
        self._flush()
        trainer, train = self.trainer, self.spec.train
        loss: float
        try:
            loss, count = evaluation_loss(
                trainer.model,
                device_batches(self.held_out, train.batch_size, trainer.pad, trainer.args.device),
                precision=train.precision,
                loss=trainer.loss_kind,
                after_batch=self._after_batch,
            )
        except TakesTooLong:
            self.telemetry.warn(
                f"The evaluation at step {trainer.used.step} was left out: it would have held up "
                f"the stop for more than {STOP_S:.0f} s. `python -m lab evaluate` measures the "
                "result."
            )
            return None
        self.memory.mark("evaluate")
        self.eval_loss = loss
        self.telemetry.metric(
            "eval",
            step=trainer.used.step,
            tokens=trainer.used.tokens,
            seconds=trainer.used.seconds,
            flops=trainer.used.flops,
            **{"eval/loss": loss, "eval/loss_tokens": count},
        )
        return loss

    def _after_batch(self, rows: int) -> None:
        self.telemetry.progress(rows, len(self.held_out), "row")
        if rows < len(self.held_out) and self.commands.stop_waits() > STOP_S:
            raise TakesTooLong

    def _let_join(self) -> None:
        """Take what the method has just made trainable into the optimizer, and say so."""
        trainer = self.trainer
        if trainer.join_new_parameters():
            weights = checkpoint.trainable(trainer.model).values()
            trainable = sum(weight.numel() for weight in weights)
            self.telemetry.event("unfrozen", step=trainer.used.step, trainable=trainable)

    def _stops_early(self, loss: float) -> bool:
        """Whether the evaluation loss has been no better for as long as the spec allows."""
        patience = self.spec.train.early_stopping
        self.not_better = 0 if loss < self.best_loss else self.not_better + 1
        self.best_loss = min(self.best_loss, loss)
        if patience is None or self.not_better < patience:
            return False
        self.telemetry.warn(
            f"Stopped early at step {self.trainer.used.step}: the evaluation loss has not been "
            f"below {self.best_loss:.4f} for {self.not_better} evaluations."
        )
        return True

    def _warn_of_divergence(self, loss: float) -> None:
        """Say once that the evaluation loss has risen far above its best."""
        if self._has_warned or not loss > DIVERGED * self.best_loss:
            return
        self._has_warned = True
        self.telemetry.warn(
            f"The evaluation loss is {loss:.3f} at step {self.trainer.used.step}, after "
            f"{self.best_loss:.3f} at its best: training may be diverging. Stop it and lower "
            "train.learning_rate, or keep the best checkpoint."
        )

    def _shortage(self) -> str:
        """What the disk lacks for a checkpoint, in words; empty if there is room."""
        held = tensor_bytes(self.trainer.model, self.trainer.own_optimizer)
        needed = held["gradients"] + held["optimizer"]  # what trains, and what is kept beside it
        free = shutil.disk_usage(self.run.path).free
        if free >= needed + ROOM_BYTES:
            return ""
        return (
            f"it needs about {text.size(needed)} and {text.size(free)} are free, "
            f"{text.size(needed + ROOM_BYTES - free)} are missing"
        )

    def _without_checkpoint(self, why: str) -> None:
        self.telemetry.warn(
            f"The checkpoint of step {self.trainer.used.step} was not written: {why}. Training "
            "goes on with the one before; the next one is written once there is room."
        )

    def save(self) -> None:
        """Write a checkpoint and drop those that the spec does not keep."""
        self.telemetry.enter("saving")
        self._flush()
        if shortage := self._shortage():
            self._without_checkpoint(shortage)
            return
        trainer = self.trainer
        optimizer = trainer.own_optimizer
        used = trainer.used
        state = {
            "used": vars(used).copy(),
            "eval_loss": self.eval_loss,
            "best_loss": self.best_loss,
            "not_better": self.not_better,
        }
        method_state = trainer.method.state(trainer.model)
        try:
            path = checkpoint.save(
                self.run.checkpoints, used.step, trainer.model, optimizer, state, method_state
            )
        except (OSError, SafetensorError) as error:
            shortage = self._shortage()
            self._without_checkpoint(f"{error}{'; ' if shortage else ''}{shortage}")
            return
        self.memory.mark("save")
        removed = checkpoint.prune(
            self.run.checkpoints,
            self.spec.train.keep_best,
            self.spec.train.keep_last,
            checkpoints.pinned(self.run),
        )
        self.telemetry.event("checkpoint", step=used.step, path=path.name, removed=removed)

    def _record(self, step_s: float) -> None:
        """Queue the record of this step. On a GPU its numbers are read one step later, when
        they are there, so that telemetry never makes the host wait."""
        trainer = self.trainer
        used = trainer.used
        self._flush()
        self._pending = {
            "step": used.step,
            "tokens": used.tokens,
            "loss_tokens": used.loss_tokens,
            "seconds": used.seconds,
            "flops": used.flops,
            "train/loss": trainer.step_losses,
            "train/grad_norm": trainer.grad_norm,
            "train/learning_rate": self.rate,
            "perf/step_s": step_s,
            "memory/peak_bytes": self.memory.peak_bytes,
        }
        trainer.step_losses = []
        self.eval_loss = None
        self.telemetry.seconds, self.telemetry.step_s = used.seconds, step_s
        if not self.memory.on_gpu:
            self._flush()

    def _flush(self) -> None:
        """Write the queued record. Raises LabError if its loss is no number."""
        record, self._pending = self._pending, None
        if record is None:
            return
        record["train/loss"] = float(sum(float(part) for part in record["train/loss"]))
        record["train/grad_norm"] = float(record["train/grad_norm"])
        before = self._before
        step_s = max(record["perf/step_s"], 1e-9)
        record["perf/tokens_per_s"] = (record["tokens"] - before["tokens"]) / step_s
        if self.peak_flops:
            record["perf/mfu"] = (record["flops"] - before["flops"]) / step_s / self.peak_flops
        self._before = {key: record[key] for key in before}
        self.telemetry.metric("train", **record)
        for name in ("train/loss", "train/grad_norm"):
            if math.isfinite(record[name]):
                continue
            what = {"train/loss": "training loss", "train/grad_norm": "gradient norm"}[name]
            raise LabError(
                f"The {what} became {record[name]} at step {record['step']}, on "
                f"{self._rows_of(record['step'])} of the dataset.",
                "Lower train.learning_rate, or look at these rows; the last checkpoint is intact.",
            )

    def _rows_of(self, step: int) -> str:
        """The rows of the dataset's file that a step learned from."""
        trainer, train = self.trainer, self.spec.train
        per_step = train.batch_size * train.accumulation
        end = min(step * per_step, trainer.plan.rows)
        found = {
            source
            for place in range((step - 1) * per_step, end)
            for source in trainer.stream[place].sources
        }
        shown = ", ".join(map(str, sorted(found)[:12]))
        return f"rows {shown}{' and others' if len(found) > 12 else ''}"

    def _passed(self) -> tuple[int, int, int]:
        """How many tenths, fifths and halves of the budget are behind us."""
        fraction = self.trainer.plan.fraction(self.trainer.used)
        return int(fraction * EVALUATIONS), int(fraction * SAVES), int(fraction * SAMPLES)

    def _due(self, every: int | None, which: int, passed: tuple[int, int, int]) -> bool:
        if every is None:
            return passed[which] > self._marks[which]
        return every > 0 and self.trainer.used.step % every == 0

    def _report_progress(self) -> None:
        trainer = self.trainer
        plan, used = trainer.plan, trainer.used
        fraction = plan.fraction(used)
        gained = fraction - self._begun_at
        spent = time.monotonic() - self._begun
        # evaluations and checkpoints so far are part of the pace
        eta_s = spent / gained * (1.0 - fraction) if gained > 0 else None
        if plan.has_open_end:
            self.telemetry.progress(round(used.seconds, 1), plan.limits["seconds"], "second", eta_s)
        else:
            self.telemetry.progress(used.step, plan.steps, "step", eta_s)
