"""One attempt at a run, from the spec to the result file."""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
import time
import traceback
from importlib.metadata import version
from typing import Any

from lab.errors import Cancelled, LabError
from lab.files import read_object, write_json
from lab.paths import ROOT, RunDir
from lab.runs import history, process
from lab.spec import RunSpec
from lab.train.telemetry import Memory, Telemetry, sampler

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "tokenizers")


def work(run: RunDir) -> int:
    """Run one attempt to its end; the exit code. Every way out but a kill writes result.json."""
    process.await_registration(run)
    stored = read_object(run.spec)
    attempt = 1 + sum(1 for _ in run.attempts.glob("*")) if run.attempts.is_dir() else 1
    telemetry = Telemetry(run, attempt)
    started = time.time()
    summary: dict[str, Any] = {}
    state, message, hint = "failed", "", ""
    try:
        if stored is None:
            raise LabError("spec.json is missing or damaged.", "Start a new run.")
        telemetry.start(sampler(run, uses_gpu=False))
        telemetry.enter("loading")
        attempt_run = Attempt(run, RunSpec.stored(stored), telemetry)
        state = attempt_run.go(summary)
    except Cancelled:
        state = "cancelled"
    except LabError as error:
        message, hint = error.message, error.hint
        print(f"error: {error}", flush=True)
    except Exception as error:
        traceback.print_exc()
        message, hint = f"{type(error).__name__}: {error}", hint_for(error)
    finally:
        telemetry.enter("ended")
        telemetry.stop()
    write_json(
        run.result,
        {
            "v": 1,
            "state": state,
            "message": message,
            "hint": hint,
            "attempt": attempt,
            "started": started,
            "ended": time.time(),
            "summary": summary,
        },
    )
    return 1 if state == "failed" else 0


def hint_for(error: Exception) -> str:
    """What to do about an error of a library."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return (
            "Out of memory: halve train.batch_size and double train.accumulation, shorten "
            "data.max_length, or turn train.activation_checkpointing on."
        )
    if isinstance(error, OSError) and error.errno == 28:
        return "The disk is full: delete runs or checkpoints, then resume."
    return "The log has the whole traceback."


class Attempt:
    """The steps of one attempt, in order; `go` gives the state that it ended in."""

    def __init__(self, run: RunDir, spec: RunSpec, telemetry: Telemetry) -> None:
        from lab.train.conductor import Commands

        self.run, self.spec, self.telemetry = run, spec, telemetry
        self.commands = Commands(run)
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, *_: Any) -> None:
        self.commands.stop_signal = True

    def check_commands(self) -> None:
        """Before training there is nothing to save: stop and cancel both just end."""
        if self.commands.take() in ("stop", "cancel"):
            raise Cancelled

    def go(self, summary: dict[str, Any]) -> str:
        import torch

        from lab import methods
        from lab.data import batches, prepare
        from lab.models import catalog, weights
        from lab.train import artifact, checkpoint, flops, schedule
        from lab.train.conductor import Conductor
        from lab.train.step import evaluation_loss, fused_is_exact
        from lab.train.trainer import LabTrainer, device_batches

        run, telemetry, spec = self.run, self.telemetry, self.spec
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        memory = Memory(device)
        telemetry.resample(sampler(run, uses_gpu=device.type == "cuda"))
        quieten()
        seed_everything(spec.train.seed)
        write_json(run.environment, environment(spec, device))
        saved, skipped = checkpoint.newest_valid(run.checkpoints)
        for reason in skipped:
            telemetry.warn(f"Skipped a checkpoint: {reason}")

        telemetry.enter("tokenising")
        source = catalog.resolve(spec.model)
        tokenizer = weights.load_tokenizer(source)

        def count_rows(done: int, total: int) -> None:
            telemetry.progress(done, total, "row")
            self.check_commands()

        data = prepare.prepare(spec, tokenizer, count_rows)
        for note in data.notes:
            telemetry.warn(note)
        telemetry.event("data", **data.facts())
        self.check_commands()

        telemetry.enter("loading")
        method, config = methods.get(spec.method["name"]), spec.method_config
        context = methods.Context(spec, tokenizer)
        dtype = torch.bfloat16 if spec.train.precision == "bfloat16" else torch.float32
        model = weights.load_model(source, dtype, **method.load_kwargs(config)).to(device)
        model.config.use_cache = False
        memory.mark("load")
        self.check_commands()

        precision, loss = spec.train.precision, spec.train.loss
        if loss == "fused" and not fused_is_exact(model, precision=precision):
            telemetry.warn(
                "This architecture changes its logits after the head, so the fused loss would be "
                "wrong; training with the plain loss."
            )
            loss = "plain"
        pad = tokenizer.pad_token_id
        base = history.base_loss(run)
        if base is None and data.held_out:
            telemetry.enter("evaluating")
            base, counted = evaluation_loss(
                model,
                device_batches(data.held_out, spec.train.batch_size, pad, device),
                precision=precision,
                loss=loss,
            )
            memory.mark("evaluate")
            telemetry.metric(
                "eval",
                step=0,
                tokens=0,
                seconds=0.0,
                flops=0.0,
                of="base",
                **{"eval/loss": base, "eval/loss_tokens": counted},
            )
        self.check_commands()

        telemetry.enter("loading")
        seed_everything(spec.train.seed)
        method.prepare(model, config, context)
        model = method.apply(model, config, context)
        if spec.train.activation_checkpointing == "on":
            checkpoint_activations(model)
        if spec.train.compile == "on":
            compile_layers(model)
        parameters = sum(weight.numel() for weight in model.parameters())
        trainable = sum(weight.numel() for weight in checkpoint.trainable(model).values())
        telemetry.event("model", parameters=parameters, trainable=trainable, device=str(device))

        costs = flops.count(model, loss)
        stream = batches.Stream(data.train, spec.train.seed)
        plan = schedule.plan(spec.train, stream, costs)
        used = schedule.Used()
        if saved is not None:
            checkpoint.load_weights(saved.path, model)
            method.load_state(model, checkpoint.method_state(saved.path))
            used = schedule.Used(**saved.state["used"])
        telemetry.event("plan", steps=plan.steps, rows=plan.rows, resumed_at=used.step)

        conductor = Conductor(
            run,
            spec,
            telemetry,
            memory,
            self.commands,
            data.held_out,
            saved,
            peak(device),
        )
        conductor.trainer = trainer = LabTrainer(
            model,
            spec,
            method,
            stream,
            plan,
            used,
            costs,
            pad,
            memory,
            run.checkpoints,
            [conductor],
        )
        trainer.loss_kind = loss
        trainer.train()
        summary |= dataclasses.asdict(used) | {
            "parameters": parameters,
            "trainable": trainable,
            "planned_steps": plan.steps,
            "peak_bytes": memory.peak_bytes,
            "peaks": memory.peaks,
        }
        if conductor.ended_by == "cancelled":
            return "cancelled"
        telemetry.enter("saving")
        summary["artifact_bytes"] = artifact.save(
            run, model, tokenizer, method, spec, data.facts() | dataclasses.asdict(used)
        )
        return conductor.ended_by or "done"


def peak(device: Any) -> float | None:
    import torch

    from lab import machine

    on_gpu = device.type == "cuda"
    return machine.peak_flops(torch.cuda.get_device_name(device) if on_gpu else "", on_gpu)


def seed_everything(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed)


def quieten() -> None:
    """No progress bars of libraries in the log: they write thousands of lines without an end."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass; the name differs between versions."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    # without it, nothing in front of frozen layers requires a gradient
    model.enable_input_require_grads()


def compile_layers(model: Any) -> None:
    """Compile each decoder layer by itself: they are alike, so one compilation serves all."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            for layer in module:
                if "Layer" in type(layer).__name__ or "Block" in type(layer).__name__:
                    layer.compile()


def environment(spec: RunSpec, device: Any) -> dict[str, Any]:
    """Versions, device and seeds of this attempt."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "v": 1,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "cuda": torch.version.cuda,
        "device": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "seed": spec.train.seed,
        "git": git_revision(),
        "pid": os.getpid(),
        "host": platform.node(),
    }


def git_revision() -> str | None:
    """The commit of this checkout, read from .git without running git."""
    try:
        head = (ROOT / ".git" / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        reference = ROOT / ".git" / head.removeprefix("ref: ")
        return reference.read_text(encoding="utf-8").strip()
    except OSError:
        return None  # an exported copy, or packed references
