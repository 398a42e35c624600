"""What happens between steps: records, evaluation, checkpoints, and a person's commands."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence

import torch
from safetensors import SafetensorError

from lab import formatting
from lab.data.batches import TokenSequence
from lab.methods import Method
from lab.paths import RunDir
from lab.runs import checkpoints
from lab.spec import RunSpec
from lab.train import budget, checkpoint, flops, held_out_file
from lab.train.budget import BudgetUsed, TrainingBudget, TrainingTimer
from lab.train.checkpoint import Checkpoint
from lab.train.commands import Commands
from lab.train.forgetting_probe import ForgettingProbe
from lab.train.loop import StepResult, TrainingLoop
from lab.train.optimizer import add_new_parameters
from lab.train.sample_outputs import SampleGenerator
from lab.train.step import device_batches, row_losses
from lab.train.step_recorder import StepRecorder
from lab.train.telemetry import PeakMemory, Telemetry, tensor_bytes
from lab.train.update_ranks import UpdateRanks

EVALUATIONS = 10  # in a run, where the spec leaves it open
SAVES = 5
SAMPLES = 2
DIVERGED = 1.3  # times the best evaluation loss
ROOM_BYTES = 50_000_000  # left free on the disk beside a checkpoint
STOP_S = 60.0  # that an evaluation may still take once a person has said stop


class TakesTooLong(Exception):
    """An evaluation goes on for longer than who said stop should wait."""


class RunCallback:
    """The loop's callback that keeps the run directory; `loop` is set once it exists."""

    loop: TrainingLoop
    clock: TrainingTimer
    records: StepRecorder

    def __init__(
        self,
        run: RunDir,
        spec: RunSpec,
        method: Method,
        telemetry: Telemetry,
        memory: PeakMemory,
        commands: Commands,
        held_out: Sequence[TokenSequence],
        resumed: Checkpoint | None,
        peak_flops: float | None,
        sampler: SampleGenerator,
        forgetting: ForgettingProbe | None = None,
    ) -> None:
        self.run, self.spec, self.method = run, spec, method
        self.telemetry, self.memory = telemetry, memory
        self._parts_are_recorded = False
        self.commands, self.held_out, self.resumed = commands, held_out, resumed
        self.peak_flops, self.sampler, self.forgetting = peak_flops, sampler, forgetting
        self.ended_by: str | None = None
        self.eval_loss: float | None = None
        state = resumed.state if resumed is not None else {}
        self.best_loss = float(state.get("best_loss", math.inf))
        self.evals_without_improvement = int(state.get("not_better", 0))
        self._has_warned = False
        self.ranks = UpdateRanks(float(state.get("highest_rank", 0.0)))
        self._last_intervals = (0, 0, 0)
        self._begun, self._begun_at = 0.0, 0.0

    @property
    def used(self) -> BudgetUsed:
        return self.loop.batches.used

    @property
    def plan(self) -> TrainingBudget:
        return self.loop.batches.plan

    # -- the loop's callbacks -----------------------------------------------------------

    def on_train_begin(self, loop: TrainingLoop) -> None:
        self.loop = loop
        self.clock = TrainingTimer(self.used)
        self.records = StepRecorder(loop, self.telemetry, self.memory, self.peak_flops)
        if self.resumed is not None and checkpoint.OPTIMIZER not in self.resumed.missing_files:
            checkpoint.load_optimizer(self.resumed.path, loop.model, loop.optimizer)
        self._last_intervals = self._intervals_passed()
        self._begun, self._begun_at = time.monotonic(), self.plan.fraction(self.used)
        self.telemetry.enter_phase("training")
        self._report_progress()
        if self.resumed is not None and checkpoint.EXTRA not in self.resumed.missing_files:
            checkpoint.restore_random(self.resumed)
        self.clock.start()

    def end_phase(self, phase: str) -> None:
        """A forward or backward pass or an update has ended: its peak, and a sign of life."""
        self.memory.end_phase(phase)
        self.telemetry.sign()

    def on_step_end(self, loop: TrainingLoop, result: StepResult) -> None:
        self._measure_parts()
        self._wait_for_kernels()
        step_s = self.clock.stop()
        self.records.add(step_s, result)
        self.eval_loss = None
        self._report_progress()
        wish = self.commands.take()
        is_last = self._is_at_end()
        if wish == "cancel":
            self.ended_by, loop.should_stop = "cancelled", True
            return
        if wish == "stop" and not is_last:
            self.ended_by, loop.should_stop = "stopped", True
        eval_due, save_due, sample_due = self._what_is_due()
        self._last_intervals = self._intervals_passed()
        if self.held_out and (is_last or self.ended_by or eval_due):
            loss = self.evaluate()
            if loss is not None:
                self.method.on_evaluate(loop.model, self.spec.method_config, self.used.step, loss)
                is_last = self._stops_early(loss) or is_last
                self._warn_of_divergence(loss)
                if self.forgetting is not None and self.commands.stop_waits() <= STOP_S:
                    self._measure_forgetting(self.forgetting)
        if self.method.adds_parameters:
            self._add_new_parameters()
        if sample_due or (is_last and self.spec.train.sample_steps != 0):
            self.sampler.sample(loop.model, self.used.step)
            self.memory.end_phase("sample")
        if self.ended_by is None and not is_last and self.commands.look() == "stop":
            self.ended_by, loop.should_stop = "stopped", True  # not one more step
        if not is_last and (self.ended_by or save_due or wish == "save"):
            self.save()
        if is_last:
            loop.should_stop = True
        if not loop.should_stop:
            self.telemetry.enter_phase("training")
            self._report_progress()
        self.clock.start()

    def on_train_end(self, loop: TrainingLoop) -> None:
        self.records.flush()

    # -- what they do -------------------------------------------------------------------

    def _wait_for_kernels(self) -> None:
        """Let the clock see what a GPU works: for the step before, whose kernels ran while this one
        was prepared, or, where something else than a step comes next, for this one as well."""
        if not self.memory.on_gpu:
            return
        if self._is_at_end() or any(self._what_is_due()):
            torch.cuda.synchronize()
        else:
            self.records.wait_for_pending()

    def _measure_parts(self) -> None:
        """After the first step of an attempt: what the tensors of each kind really take."""
        if self._parts_are_recorded:
            return
        self._parts_are_recorded = True
        model = self.loop.model
        part_bytes = tensor_bytes(model, self.loop.optimizer, self.method.scores(model))
        self.telemetry.event("memory", **part_bytes, peaks=self.memory.peaks)

    def evaluate(self) -> float | None:
        """Held-out loss of the model as it is now, recorded at the current step; None if it takes
        too long for a person who has said stop."""
        self.telemetry.enter_phase("evaluating")
        self.records.flush()
        train, loop, used = self.spec.train, self.loop, self.used
        device, pad_token_id = loop.accelerator.device, loop.batches.pad_token_id
        try:
            losses = row_losses(
                loop.model,
                device_batches(self.held_out, train.batch_size, pad_token_id, device),
                precision=train.precision,
                loss=loop.config.loss,
                after_batch=self._after_batch,
            )
        except TakesTooLong:
            self.telemetry.warn(
                f"The evaluation at step {used.step} was left out: it would have held up the stop "
                f"for more than {STOP_S:.0f} s. 'python -m lab evaluate' measures the result."
            )
            return None
        self.memory.end_phase("evaluate")
        loss: float = losses.mean
        self.eval_loss = loss
        held_out_file.write_losses(self.run, self.telemetry.attempt, used.step, losses.sums)
        self.telemetry.metric(
            "eval",
            **used.amounts(),
            **{"eval/loss": loss, "eval/loss_tokens": losses.num_tokens},
            **self.ranks.measure(loop.model),
        )
        if collapse := self.ranks.collapse():
            self.telemetry.warn(f"The updates have collapsed at step {used.step}: {collapse}")
        return loss

    def _measure_forgetting(self, probe: ForgettingProbe) -> None:
        """What the model has forgotten by now, beside the evaluation loss of the same step."""
        figures = probe.measure_live(self.loop.model)
        self.memory.end_phase("evaluate")
        self.telemetry.metric("probe", **self.used.amounts(), **figures)

    def _after_batch(self, rows: int) -> None:
        self.telemetry.progress(rows, len(self.held_out), "row")
        if rows < len(self.held_out) and self.commands.stop_waits() > STOP_S:
            raise TakesTooLong

    def _add_new_parameters(self) -> None:
        """Take what the method has just made trainable into the optimizer, and say so."""
        loop, batches = self.loop, self.loop.batches
        multiplier = budget.lr_multiplier(self.spec.train, self.plan, self.used)
        if not add_new_parameters(loop.optimizer, loop.model, self.method, self.spec, multiplier):
            return
        virtual = self.method.virtual_tokens(self.spec.method_config)
        batches.costs = flops.count(loop.model, loop.config.loss, virtual)
        trainable = sum(weight.numel() for weight in checkpoint.trainable(loop.model).values())
        self.telemetry.event("unfrozen", step=self.used.step, trainable=trainable)

    def _stops_early(self, loss: float) -> bool:
        """Whether the evaluation loss has been no better for as long as the spec allows."""
        patience = self.spec.train.early_stopping
        self.evals_without_improvement = (
            0 if loss < self.best_loss else self.evals_without_improvement + 1
        )
        self.best_loss = min(self.best_loss, loss)
        if patience is None or self.evals_without_improvement < patience:
            return False
        self.telemetry.warn(
            f"Early stopping at step {self.used.step}: evaluation loss has not improved on "
            f"{self.best_loss:.4f} for "
            f"{formatting.quantity(self.evals_without_improvement, 'evaluation')}."
        )
        return True

    def _warn_of_divergence(self, loss: float) -> None:
        """Say once that the evaluation loss has risen far above its best."""
        if self._has_warned or not loss > DIVERGED * self.best_loss:
            return
        self._has_warned = True
        self.telemetry.warn(
            f"The evaluation loss is {loss:.3f} at step {self.used.step}, after "
            f"{self.best_loss:.3f} at its best: the model may be overfitting or diverging. Stop it "
            "and lower train.learning_rate, or keep the best checkpoint."
        )

    def _missing_disk_space(self) -> str:
        """What the disk lacks for a checkpoint, in words; empty if there is room."""
        part_bytes = tensor_bytes(self.loop.model, self.loop.optimizer)
        # what trains, and what is kept beside it
        needed = sum(part_bytes[name] for name in ("gradients", "optimizer", "paged"))
        free = shutil.disk_usage(self.run.path).free
        if free >= needed + ROOM_BYTES:
            return ""
        return (
            f"it needs about {formatting.size(needed)} and {formatting.size(free)} are free, "
            f"{formatting.size(needed + ROOM_BYTES - free)} are missing"
        )

    def _warn_checkpoint_skipped(self, why: str) -> None:
        self.telemetry.warn(
            f"The checkpoint of step {self.used.step} was not saved: {why}. Training continues; "
            "the next one is saved when there is space."
        )

    def save(self) -> None:
        """Write a checkpoint and drop those that the spec does not keep."""
        self.telemetry.enter_phase("saving")
        self.records.flush()
        if shortage := self._missing_disk_space():
            self._warn_checkpoint_skipped(shortage)
            return
        model, used = self.loop.model, self.used
        state = {
            "used": vars(used).copy(),
            "eval_loss": self.eval_loss,
            "best_loss": self.best_loss,
            "not_better": self.evals_without_improvement,
            "highest_rank": self.ranks.highest,
        }
        method_state = self.method.state(model)
        try:
            path = checkpoint.save(
                self.run.checkpoints, used.step, model, self.loop.optimizer, state, method_state
            )
        except (OSError, SafetensorError) as error:
            shortage = self._missing_disk_space()
            self._warn_checkpoint_skipped(f"{error}{'; ' if shortage else ''}{shortage}")
            return
        self.memory.end_phase("save")
        removed = checkpoint.delete_old(
            self.run.checkpoints,
            self.spec.train.keep_best,
            self.spec.train.keep_last,
            checkpoints.pinned(self.run),
        )
        self.telemetry.event("checkpoint", step=used.step, path=path.name, removed=removed)

    def _intervals_passed(self) -> tuple[int, int, int]:
        """How many tenths, fifths and halves of the budget are behind us."""
        fraction = self.plan.fraction(self.used)
        return int(fraction * EVALUATIONS), int(fraction * SAVES), int(fraction * SAMPLES)

    def _what_is_due(self) -> tuple[bool, bool, bool]:
        """Whether an evaluation, a checkpoint and samples are due after this step."""
        train, passed = self.spec.train, self._intervals_passed()
        evaluates, saves, samples = (
            every > 0 and self.used.step % every == 0
            if every is not None
            else passed[which] > self._last_intervals[which]
            for which, every in enumerate((train.eval_steps, train.save_steps, train.sample_steps))
        )
        return evaluates, saves, samples

    def _is_at_end(self) -> bool:
        return self.used.step >= self.plan.steps or self.plan.fraction(self.used) >= 1

    def _report_progress(self) -> None:
        plan, used = self.plan, self.used
        fraction = plan.fraction(used)
        gained = fraction - self._begun_at
        spent = time.monotonic() - self._begun
        # evaluations and checkpoints so far are part of the pace
        eta_s = spent / gained * (1.0 - fraction) if gained > 0 else None
        if plan.is_time_limited:
            self.telemetry.progress(round(used.seconds, 1), plan.limits["seconds"], "second", eta_s)
        else:
            self.telemetry.progress(used.step, plan.steps, "step", eta_s)
