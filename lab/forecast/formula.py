"""What can be counted without running anything: weights, gradients, optimizer state and disk.

All in bytes. What layers and the loss keep is traced (`outline.py`, `trace/`), never worked out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab import methods, optimizers
from lab.forecasts import DiskForecast, MemoryForecast, Parts, Phases
from lab.spec import RunSpec

CUBLAS_WORKSPACE = 2 * (32 << 20)  # 32 MiB on Hopper, for the forward and the backward thread
PROMPT_TOKENS = 64  # of the probe's prompts with their template; they are short
CPU_LIBRARIES = 900_000_000  # resident size of Python, torch and transformers before any weight


@dataclass(frozen=True)
class ModelSizes:
    """What can be counted of a model with its method, in bytes where nothing else is said."""

    parameters: int
    trainable: int
    weights: int
    trainable_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    hidden: int
    vocabulary: int
    layers: int
    update_bytes: int = 0  # bytes that the update works in
    loaded: int = 0  # bytes of the base, before the method is applied
    paged_bytes: int = 0  # of the optimizer's, that CUDA moves between GPU and host
    score_bytes: int = 0  # that the method keeps beside the optimizer's

    @property
    def optimizer_in_memory(self) -> int:
        """Bytes of the optimizer's and the method's state that a device holds at all times."""
        return self.optimizer_bytes - self.paged_bytes + self.score_bytes


def sizes(model: Any, spec: RunSpec, quantised: Any = None) -> ModelSizes:
    """The sizes of `model` (on the meta device, method applied, types set)."""
    from lab.forecast.trace.meta_model import stored_bytes

    config = model.config
    everything = list(model.parameters())
    trainable = [weight for weight in everything if weight.requires_grad]
    rule = optimizers.get(spec.train.optimizer)
    trained = [weight.numel() * weight.element_size() for weight in trainable]
    copied = sum(4 * weight.numel() for weight in trainable if weight.element_size() < 4)
    if not optimizers.uses_master_weights(methods.get(spec.method["name"]), spec.train):
        copied = 0
    states = [
        rule.state_bytes(
            tuple(weight.shape), 4 if copied else weight.element_size(), spec.train.momentum
        )
        for weight in trainable
    ]
    return ModelSizes(
        parameters=sum(weight.numel() for weight in everything),
        trainable=sum(weight.numel() for weight in trainable),
        weights=sum(stored_bytes(weight, quantised) for weight in everything),
        trainable_bytes=sum(trained),
        gradient_bytes=max(trained, default=0) if rule.in_backward else sum(trained),
        optimizer_bytes=sum(states) + copied,
        paged_bytes=sum(
            2 * weight.numel()  # the moments; their scales stay on the device
            for weight in trainable
            if rule.is_paged and weight.numel() >= optimizers.PAGED_ELEMENTS
        ),
        score_bytes=methods.get(spec.method["name"]).score_copies * sum(trained),
        # gradients of the copies, and what a rule needs beside
        update_bytes=copied
        + rule.update_workspace_bytes * max((weight.numel() for weight in trainable), default=0),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
    )


def loading(sizes: ModelSizes, *, on_gpu: bool) -> int:
    """Bytes once the base is loaded, and nothing else: no product has asked for a workspace yet."""
    return sizes.loaded + (0 if on_gpu else CPU_LIBRARIES)


def proving(sizes: ModelSizes, spec: RunSpec) -> int:
    """Bytes beside weights and state while a result is saved. Its tensors are written one by one
    and gradients are gone, so these are the logits of the proof's longest row, as the head gives
    them and in float32."""
    from lab.train.proof import TOKENS

    width = 2 if spec.train.precision == "bfloat16" else 4
    copy = 0 if width == 4 else 4
    return min(TOKENS, spec.data.max_length) * sizes.vocabulary * (width + copy)


def probing(sizes: ModelSizes, spec: RunSpec) -> int:
    """Bytes beside weights and state while the forgetting probe is measured: the logits of a batch
    of the base's own answers, and twice those of the answers' tokens in float32."""
    from lab.train.forgetting import MAX_NEW_TOKENS, ROWS

    if spec.train.forgetting_probe != "on":
        return 0
    width = 4 if spec.train.precision == "float32" else 2
    tokens = PROMPT_TOKENS + MAX_NEW_TOKENS
    return ROWS * sizes.vocabulary * (tokens * width + 2 * MAX_NEW_TOKENS * 4)


def counted(sizes: ModelSizes, spec: RunSpec, *, on_gpu: bool) -> MemoryForecast:
    """What the model's own tensors say without a traced step: the exact sizes of weights,
    gradients and optimizer state. The phases that run layers are left at what they begin with, so
    the peak is the least that the run needs: it may rule a run out, and never says that it fits."""
    workspace = CUBLAS_WORKSPACE if on_gpu else CPU_LIBRARIES
    resting = sizes.weights + sizes.optimizer_in_memory + workspace
    accumulated = sizes.gradient_bytes if spec.train.gradient_accumulation_steps > 1 else 0
    phases = Phases(
        load=loading(sizes, on_gpu=on_gpu),
        forward=resting + accumulated,
        backward=resting + sizes.gradient_bytes,
        optimizer=resting + sizes.gradient_bytes + sizes.update_bytes,
        evaluate=resting + probing(sizes, spec),
        save=resting + proving(sizes, spec),
        resume=resting,
    )
    parts = Parts(
        weights=sizes.weights,
        gradients=sizes.gradient_bytes,
        optimizer=sizes.optimizer_in_memory,
        activations=sizes.update_bytes,
        workspace=workspace,
    )
    return MemoryForecast(
        parameters=sizes.parameters,
        trainable=sizes.trainable,
        largest=parts,
        at_peak=parts,
        phases=phases,
        peak_bytes=phases.optimizer,
        peak_phase="optimizer",
        has_margin=not on_gpu,
    )


def disk_forecast(sizes: ModelSizes, spec: RunSpec) -> DiskForecast:
    """What the run may hold on disk: the result, the kept checkpoints, one being written."""
    train = spec.train
    is_whole = methods.get(spec.method["name"]).saves_whole_model
    artifact = sizes.weights if is_whole else sizes.trainable_bytes
    # of a method's scores a checkpoint may leave some out
    checkpoint = sizes.trainable_bytes + sizes.optimizer_bytes + sizes.score_bytes
    count = 0 if train.save_steps == 0 else train.keep_best + train.keep_last + 1
    if train.max_steps is not None and train.save_steps:
        count = min(count, train.max_steps // train.save_steps)
    return DiskForecast(artifact, checkpoint, artifact + count * checkpoint)
