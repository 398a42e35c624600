"""What one attempt does, step by step, once torch may be imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers.utils import logging

from lab import methods, paths
from lab.atomic_files import part, read_object, write_json
from lab.checked_run import read_forecast, read_stats
from lab.data import batches, chat_template, prepare, token_view
from lab.data import catalog as datasets
from lab.data.prepare import PreparedData
from lab.errors import Cancelled, LabError
from lab.formatting import quantity
from lab.methods import Context
from lab.models import weights
from lab.models.context_length import text_length
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.result import TrainingSummary
from lab.spec import RunSpec, without_packing
from lab.train import (
    artifact,
    budget,
    checkpoint,
    compile_layers,
    flops,
    forgetting,
    held_out_file,
)
from lab.train.activation_checkpointing import checkpoint_activations
from lab.train.base_identity import base_source, identify_base
from lab.train.callbacks import RunCallback
from lab.train.checkpoint import Checkpoint
from lab.train.commands import NEVER, WHILE_TRAINING, Commands
from lab.train.download import ASKED_S, fetch_base, fetch_data, watch_branches
from lab.train.environment import changes_since_last_attempt, environment, peak_flops
from lab.train.forgetting_probe import ForgettingProbe
from lab.train.loop import StepConfig, TrainingLoop
from lab.train.optimizer import make_optimizer
from lab.train.resume_point import newest_checkpoint
from lab.train.sample_outputs import SampleGenerator
from lab.train.step import (
    device_batches,
    fused_matches_plain,
    is_causal,
    isolates_packed_sequences,
    row_losses,
)
from lab.train.step_batches import StepBatches
from lab.train.telemetry import PeakMemory, Telemetry, device_stats_reader

PACKING = "packing"  # the event that tells later attempts what was settled


class Attempt:
    """One attempt at `spec` in `run`; `go` gives the state that it ended in."""

    def __init__(
        self, run: RunDir, spec: RunSpec, telemetry: Telemetry, commands: Commands | None = None
    ) -> None:
        self.run, self.spec, self.telemetry = run, spec, telemetry
        # plain: autocast belongs to the step, and so does the division by accumulated tokens
        self.accelerator = Accelerator(
            mixed_precision="no", gradient_accumulation_steps=1, cpu=not torch.cuda.is_available()
        )
        self.device = self.accelerator.device
        self.memory = PeakMemory(self.device)
        self.commands = commands or Commands(run)
        self.method = methods.get(spec.method["name"])
        self.loss = spec.train.loss_implementation
        self.summary = TrainingSummary()
        self.warned: set[str] = set()
        self.forgetting_probe: ForgettingProbe | None = None

    def prepare(self) -> RunCallback:
        """Everything before the first step: data, model, method, loop."""
        # libraries' progress bars write thousands of lines without an end into the log
        logging.disable_progress_bar()
        self.telemetry.set_sampler(
            device_stats_reader(self.run, uses_gpu=self.device.type == "cuda")
        )
        write_json(self.run.environment, environment(self.spec, self.device))
        saved = newest_checkpoint(self.run, self.telemetry)
        if saved is not None and (text := changes_since_last_attempt(self.run)):
            self.telemetry.warn(
                f"Resumed in a different environment ({text}): the result may not be bit-identical "
                "to an uninterrupted run."
            )
        settled = record_reader.last_event(self.run, PACKING)  # by an earlier attempt
        if settled.get("packing") == "off":
            self.spec = without_packing(self.spec)
        self.source = base_source(self.run, self.spec.model)
        begin, look = "" if saved else self.spec.init_from_run, self._check_commands
        branches = watch_branches(self.run, self.spec, self.source)
        fetch_base(self.source, self.telemetry, look)
        fetch_data(self.spec, self.telemetry, look)
        self.base = identify_base(self.run, self.source, self.telemetry, look, begin)
        for note in branches.notes(ASKED_S):
            self.telemetry.warn(note)
        self.data = self._data()
        # a resumed run keeps the packing it started with
        model = self._load_and_evaluate_base(tries_packing=not settled and saved is None)
        model = self._apply_method(model, begins=saved is None)
        return self._conductor(model, self.data, saved)

    def run_training(self) -> str:
        """Train to the end of the plan or to a command: the state. `summary` has the figures."""
        conductor = self.prepare()
        loop, model = conductor.loop, conductor.loop.model
        self._check_commands()
        self.commands.interrupting = WHILE_TRAINING
        try:
            loop.run()
        except Cancelled:
            conductor.ended_by = "cancelled"
        used = dataclasses.asdict(conductor.used)
        self.summary = TrainingSummary(
            **used,
            parameters=self.parameters,
            trainable=sum(weight.numel() for weight in checkpoint.trainable(model).values()),
            planned_steps=conductor.plan.steps,
            packing=self.spec.data.packing,
            **self.memory.summary(),
        )
        if conductor.ended_by == "cancelled":
            return "cancelled"
        if self.forgetting_probe is not None:
            probe = self._measure_forgetting(self.forgetting_probe, model, conductor.used)
            self.summary = dataclasses.replace(self.summary, probe=probe)
        self.commands.interrupting = NEVER
        self.telemetry.enter_phase("saving")
        facts = self.data.facts() | used | {"base": self.base.to_json()}
        proving = artifact.proving(self.run, self.source, self.data, self.telemetry.warn)
        artifact_bytes = artifact.save(
            self.run, model, self.tokenizer, self.method, self.spec, facts, proving
        )
        self.memory.end_phase("save")
        self.summary = dataclasses.replace(
            self.summary, artifact_bytes=artifact_bytes, **self.memory.summary()
        )
        return conductor.ended_by or "done"

    def _measure_forgetting(
        self, probe: ForgettingProbe, model: Any, used: budget.BudgetUsed
    ) -> dict[str, float]:
        self.telemetry.enter_phase("evaluating")
        figures, lost = probe.measure_end(model)
        self.memory.end_phase("evaluate")
        self.telemetry.metric("probe", **used.amounts(), **figures)
        self.telemetry.event("forgotten", step=used.step, examples=lost)
        return figures

    def _check_commands(self) -> None:
        """Before training there is nothing to save: stop and cancel both just end."""
        if (command := self.commands.take()) in ("stop", "cancel"):
            raise Cancelled(command)

    def _data(self) -> PreparedData:
        self.telemetry.enter_phase("tokenising")
        self.tokenizer = weights.load_tokenizer(self.source)
        self.method.extend_tokenizer(self.tokenizer, self.spec.method_config)

        def count_rows(done: int, total: int) -> None:
            self.telemetry.progress(done, total, "kB")
            self._check_commands()

        general = None
        if self.spec.data.general_fraction and self.spec.data.general_dataset == "base":
            general = self._base_answers(self._load_base)
            self.telemetry.enter_phase("tokenising")
        data = prepare.prepare(self.spec, self.tokenizer, count_rows, general)
        for note in [*read_stats(self.run).warnings, *data.notes]:
            if note not in self.warned:
                self.telemetry.warn(str(note))
                self.warned.add(note)
        facts = data.facts()
        predicted = read_forecast(self.run).settings
        if predicted and predicted.knows_rows and facts["longest_row"] > predicted.longest_row:
            self.telemetry.warn(
                f"The data has changed since the check: its longest row has {facts['longest_row']} "
                f"tokens now, and the memory was predicted for {predicted.longest_row}."
            )
        before, packing = record_reader.last_event(self.run, "data"), self.spec.data.packing
        for key in ("train_hash", "held_out_hash"):
            is_same = before.get("packing", packing) == packing
            if before and is_same and before.get(key) != facts[key]:
                raise LabError(
                    f"The data of '{self.spec.data.dataset}' has changed since the last attempt "
                    f"({quantity(before.get('examples'), 'example')} then, "
                    f"{facts['examples']} now).",
                    "Put the file back as it was, or start a new run; a newer lab may also "
                    "learn other tokens of the same file.",
                )
        self.telemetry.event("data", **facts, packing=packing)
        self._check_commands()
        return data

    def _load_and_evaluate_base(self, *, tries_packing: bool) -> Any:
        """The base model with room for the method's tokens, its evaluation loss measured before
        anything else touches it."""
        self.telemetry.enter_phase("loading")
        train = self.spec.train
        model = self._load_base()
        self.length = text_length(model.config, self.method, self.spec.method_config)
        self.memory.end_phase("load")
        set_seed(train.seed)
        self.method.prepare(model, self.spec.method_config, Context(self.spec, self.tokenizer))
        self._check_commands()
        if self.loss == "fused" and not fused_matches_plain(model, precision=train.precision):
            self.telemetry.warn(
                "This architecture post-processes its logits (soft-capping or scaling), so the "
                "plain loss is used instead of the fused one."
            )
            self.loss = "plain"
        if not is_causal(model, precision=train.precision):
            raise LabError(
                f"'{self.spec.model}' is not causal: tokens attend to later tokens, so it cannot "
                "be trained to generate text.",
                "Choose a causal language model.",
            )
        if tries_packing and self.spec.data.packing == "on":
            if isolates_packed_sequences(model, precision=train.precision):
                self.telemetry.event(PACKING, packing="on")
            else:
                self._unpack()
        if self.data.held_out and record_reader.base_loss(self.run) is None:
            self._evaluate_base(model, self.data)
        if train.forgetting_probe == "on":
            answers = self._base_answers(lambda: model)
            sign, precision = self.telemetry.sign, train.precision
            probe = ForgettingProbe(self.tokenizer, answers, self.length, precision, sign)
            probe.measure_base(model)
            self.memory.end_phase("evaluate")
            self.forgetting_probe = probe
        self._check_commands()
        return model

    def _unpack(self) -> None:
        """One sequence a row from here on, unless packing was asked for. Raises LabError then."""
        requested = RunSpec.requested(read_object(self.run.spec) or {})
        if part(requested, "data").get("packing") == "on":
            raise LabError(
                f"'{self.spec.model}' lets packed sequences attend to each other.",
                "Set data.packing to off or auto.",
            )
        self.telemetry.warn("Packed sequences would attend to each other here: not packing.")
        self.telemetry.event(PACKING, packing="off")
        self.spec = without_packing(self.spec)
        self.data = self._data()
        self.telemetry.enter_phase("loading")

    def _load_base(self) -> Any:
        train = self.spec.train
        dtype = torch.bfloat16 if train.precision == "bfloat16" else torch.float32
        extra = self.method.load_kwargs(self.spec.method_config)
        return weights.on_device(weights.load_model(self.source, dtype, **extra), self.device)

    def _base_answers(self, model: Callable[[], Any]) -> Path:
        """The base's own answers to general prompts: kept, or sampled now."""

        def tell(done: int, total: int) -> None:
            self.telemetry.enter_phase("evaluating")
            self.telemetry.progress(done, total, "prompt")
            self._check_commands()

        chat_template.set_up_template(self.tokenizer, self.spec.data)
        return forgetting.base_answers_file(self.source, self.tokenizer, model, tell)

    def _evaluate_base(self, model: Any, data: PreparedData) -> None:
        self.telemetry.enter_phase("evaluating")
        train, pad = self.spec.train, self.tokenizer.pad_token_id

        def count(rows: int) -> None:
            self.telemetry.progress(rows, len(data.held_out), "row")
            self._check_commands()

        losses = row_losses(
            model,
            device_batches(data.held_out, train.batch_size, pad, self.device),
            precision=train.precision,
            loss=self.loss,
            after_batch=count,
        )
        self.memory.end_phase("evaluate")
        attempt = self.telemetry.attempt
        held_out_file.write_rows(self.run, attempt, data.figures.held_out_hash, data.held_out)
        held_out_file.write_losses(self.run, attempt, 0, losses.sums, of="base")
        self.telemetry.metric(
            "eval",
            **budget.BudgetUsed().amounts(),
            of="base",
            **{"eval/loss": losses.mean, "eval/loss_tokens": losses.num_tokens},
        )

    def _apply_method(self, model: Any, *, begins: bool) -> Any:
        """The model with the method applied and its speed and memory settings in place."""
        self.telemetry.enter_phase("loading")
        train, config = self.spec.train, self.spec.method_config
        context = Context(self.spec, self.tokenizer)
        set_seed(train.seed)
        start = self.spec.init_from_run.removeprefix("run:") if begins else ""
        twin = weights.share_weights(model) if start else None
        model = self.method.apply(model, config, context)
        if start:
            artifact.load_initial_weights(model, twin, self.method, paths.run_dir(start).artifact)
        if train.activation_checkpointing == "on":
            checkpoint_activations(model, train.checkpointed_layers)
        self.parameters = sum(weight.numel() for weight in model.parameters())
        self.trainable = sum(weight.numel() for weight in checkpoint.trainable(model).values())
        self.telemetry.event(
            "model",
            parameters=self.parameters,
            trainable=self.trainable,
            device=str(self.device),
            loss=self.loss,
        )
        return model

    def _compile(self, model: Any, stream: batches.TrainingOrder) -> None:
        """Compiled layers, or plain ones with a warning where they cannot be had."""
        self.telemetry.enter_phase("compiling")
        train, data = self.spec.train, self.spec.data
        rows = [stream[index] for index in range(train.batch_size)]
        batch = batches.collate(rows, self.tokenizer.pad_token_id, data.max_length)
        failed = compile_layers.first_pass(
            model,
            compile_layers.compile_layers(model),
            {key: value.to(self.device) for key, value in batch.items()},
            precision=train.precision,
            loss=self.loss,
        )
        if failed:
            self.telemetry.warn(f"torch.compile failed ({failed}); training continues without it.")

    def _conductor(self, model: Any, data: PreparedData, saved: Checkpoint | None) -> RunCallback:
        """The loop, the progress so far, and what happens between steps."""
        spec = self.spec
        virtual = self.method.virtual_tokens(spec.method_config)
        costs = flops.count(model, self.loss, virtual)
        bucket = spec.train.batch_size if spec.data.group_by_length == "on" else 0
        stream = batches.TrainingOrder(data.train, spec.train.seed, bucket)
        token_view.keep_first_batch(self.run, stream, spec.train.batch_size, self.tokenizer)
        plan = budget.training_budget(spec.train, stream, costs)
        used = budget.BudgetUsed()
        self.method.set_total_steps(
            model, spec.method_config, None if plan.is_time_limited else plan.steps
        )
        if saved is not None:
            if checkpoint.EXTRA not in saved.missing_files:
                self.method.load_state(model, checkpoint.method_state(saved.path))
            checkpoint.load_weights(saved.path, model)
            # more may train by now than at the start
            costs = flops.count(model, self.loss, virtual)
            used = budget.BudgetUsed(**saved.state["used"])
        if spec.train.compile == "on":
            self._compile(model, stream)
        self.telemetry.event("plan", steps=plan.steps, rows=plan.rows, resumed_at=used.step)
        dataset = datasets.resolve(spec.data.dataset)
        precision, look = spec.train.precision, self.commands.look
        samples = SampleGenerator(
            self.tokenizer, dataset, data, self.telemetry, precision, look, self.length
        )
        if saved is None and spec.train.sample_steps != 0:
            samples.sample(model, 0)
            self.memory.end_phase("sample")
        conductor = RunCallback(
            self.run, spec, self.method, self.telemetry, self.memory, self.commands, data.held_out,
            saved, peak_flops(self.device), samples, self.forgetting_probe,
        )  # fmt: skip
        conductor.loop = TrainingLoop(
            self.accelerator,
            model,
            make_optimizer(model, self.method, spec),
            spec.train,
            StepConfig.of(self.method, spec.method_config, spec.train, self.loss),
            StepBatches(
                stream,
                plan,
                used,
                costs,
                spec.train.batch_size,
                spec.train.gradient_accumulation_steps,
                self.tokenizer.pad_token_id,
                spec.data.max_length if spec.train.compile == "on" else None,
            ),
            callbacks=[conductor],
            end_phase=conductor.end_phase,
        )
        return conductor
