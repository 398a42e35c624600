"""What can be counted without running anything: weights, gradients, optimizer state and disk.

All in bytes. What layers and the loss keep is traced (`outline.py`, `trace/`), never worked out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lab import methods, optimizers
from lab.spec import RunSpec

CUBLAS_WORKSPACE = 2 * (32 << 20)  # 32 MiB on Hopper, for the forward and the backward thread
CPU_LIBRARIES = 900_000_000  # resident size of Python, torch and transformers before any weight
PHASES = ("load", "forward", "backward", "optimizer", "evaluate", "save", "resume")


@dataclass(frozen=True)
class Estimate:
    """A prediction. `bytes`: the size of each part when it is largest, which need not be at the
    same moment; `at_peak`: the parts at the peak, which add up to `peak_bytes`."""

    parameters: int
    trainable: int
    bytes: dict[str, int]
    phases: dict[str, int]
    peak_bytes: int
    peak_phase: str
    disk: dict[str, int]
    source: str = "formula"
    fits: bool | None = None
    seconds: float | None = None
    rules: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"
    is_bound: bool = False
    operation: str = ""
    module: str = ""
    at_peak: dict[str, int] = field(default_factory=dict)
    reserved_bytes: int | None = None
    context_bytes: int | None = None
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    pace: dict[str, Any] | None = None  # the predicted time, where the data is known
    trace_error: str = ""  # why the step could not be traced

    @property
    def is_traced(self) -> bool:
        """Whether the layers were traced, all of them or one of each kind."""
        return self.source != "formula"

    def fits_into(self, memory_bytes: int | None) -> bool | None:
        """Whether the peak fits. None where no size is known, or where the step could not be
        traced: what was counted may be too much, but that it is enough cannot be said."""
        if memory_bytes is None:
            return None
        if self.peak_bytes > memory_bytes:
            return False
        return True if self.is_traced else None

    def to_json(self) -> dict[str, Any]:
        return {"v": 1, **asdict(self)}


@dataclass(frozen=True)
class Sizes:
    """What can be counted of a model with its method, in bytes where nothing else is said."""

    parameters: int
    trainable: int
    weights: int
    own: int  # bytes of the weights that train
    gradients: int
    moments: int
    hidden: int
    vocabulary: int
    layers: int
    updating: int = 0  # bytes that the update works in


def sizes(
    model: Any, spec: RunSpec, quantised: Any = None, frozen_bytes: int | None = None
) -> Sizes:
    """The sizes of `model` (on the meta device, method applied, types set)."""
    from lab.forecast.trace.meta_model import stored_bytes

    config = model.config
    everything = list(model.parameters())
    own = [weight for weight in everything if weight.requires_grad]
    rule = optimizers.get(spec.train.optimizer)
    trained = [weight.numel() * weight.element_size() for weight in own]
    copied = sum(4 * weight.numel() for weight in own if weight.element_size() < 4)
    if not optimizers.uses_master_weights(methods.get(spec.method["name"]), spec.train):
        copied = 0
    weights = sum(stored_bytes(weight, quantised) for weight in everything)
    if frozen_bytes is not None:
        weights = frozen_bytes + sum(trained)
    return Sizes(
        parameters=sum(weight.numel() for weight in everything),
        trainable=sum(weight.numel() for weight in own),
        weights=weights,
        own=sum(trained),
        gradients=max(trained, default=0) if rule.in_backward else sum(trained),
        moments=sum(
            rule.state_bytes(
                tuple(weight.shape), 4 if copied else weight.element_size(), spec.train.momentum
            )
            for weight in own
        )
        + copied,
        # gradients of the copies, and what a rule needs beside
        updating=copied + rule.working_bytes * max((weight.numel() for weight in own), default=0),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
    )


def counted(found: Sizes, spec: RunSpec, *, on_gpu: bool) -> Estimate:
    """What the model's own tensors say without a traced step: the exact sizes of weights,
    gradients and optimizer state. The phases that run layers are left at what they begin with, so
    the peak is the least that the run needs: it may rule a run out, and never says that it fits."""
    workspace = CUBLAS_WORKSPACE if on_gpu else CPU_LIBRARIES
    resting = found.weights + found.moments + workspace
    accumulated = found.gradients if spec.train.gradient_accumulation_steps > 1 else 0
    phases = {
        "load": found.weights + workspace,
        "forward": resting + accumulated,
        "backward": resting + found.gradients,
        "optimizer": resting + found.gradients + found.updating,
        "evaluate": resting,
        "save": resting,
        "resume": resting,
    }
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer": found.moments,
        "activations": found.updating,
        "loss": 0,
        "workspace": workspace,
    }
    whole = methods.get(spec.method["name"]).saves_whole_model
    return Estimate(
        parameters=found.parameters,
        trainable=found.trainable,
        bytes=parts,
        at_peak=parts,
        phases=phases,
        peak_bytes=phases["optimizer"],
        peak_phase="optimizer",
        disk=disk(spec, found.weights if whole else found.own, found.own + found.moments),
        device="cuda" if on_gpu else "cpu",
        is_bound=not on_gpu,
    )


def disk(spec: RunSpec, artifact: int, checkpoint: int) -> dict[str, int]:
    """Bytes that the run may hold on disk: the result, the kept checkpoints, one being written."""
    train = spec.train
    kept = 0 if train.save_steps == 0 else train.keep_best + train.keep_last + 1
    if train.max_steps is not None and train.save_steps:
        kept = min(kept, train.max_steps // train.save_steps)
    return {"artifact": artifact, "checkpoint": checkpoint, "total": artifact + kept * checkpoint}
