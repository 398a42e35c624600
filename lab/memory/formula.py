"""Closed forms for memory and disk: instant, named as estimates.

Legend: T tokens in a micro-batch, h hidden, f feed-forward, V vocabulary, L layers. All in bytes.
Weights, gradients and moments are counted exactly from the model's own tensors; activations are
rules of thumb for bf16 (24h + 8f a layer and token where all weights train, 40h + 10f with
adapters on every linear layer), doubled in float32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lab import methods, optimizers
from lab.spec import RunSpec

CUBLAS_WORKSPACE = 70_000_000
CPU_LIBRARIES = 900_000_000  # resident size of Python, torch and transformers before any weight


@dataclass(frozen=True)
class Estimate:
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

    def to_json(self) -> dict[str, Any]:
        return {"v": 1, **asdict(self)}


def estimate(
    model: Any,
    spec: RunSpec,
    *,
    on_gpu: bool,
    memory_bytes: int | None,
    frozen_bytes: int | None = None,
) -> Estimate:
    """The peak of each phase for `model` (on the meta device, method applied, types set).

    `memory_bytes` is what the device has free; None leaves `fits` open. `frozen_bytes` is the
    size of the base where it is stored in fewer bits than the model on the meta device says.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    own = [weight for weight in model.parameters() if weight.requires_grad]
    sizes = [weight.numel() * weight.element_size() for weight in own]
    rule = optimizers.get(spec.train.optimizer)
    whole = methods.get(spec.method["name"]).saves_whole_model
    gradients = max(sizes, default=0) if rule.in_backward else sum(sizes)
    if frozen_bytes is not None:
        weights = frozen_bytes + sum(sizes)
    parameters = sum(weight.numel() for weight in model.parameters())
    trainable = sum(weight.numel() for weight in own)
    moments = sum(
        rule.state_bytes(tuple(weight.shape), weight.element_size(), spec.train.momentum)
        for weight in own
    )
    tokens = spec.train.batch_size * spec.data.max_length
    activations = _activations(model.config, spec, tokens, all_train=trainable == parameters)
    loss = _loss(model.config, spec, tokens)
    workspace = CUBLAS_WORKSPACE if on_gpu else CPU_LIBRARIES
    resting = weights + moments + workspace
    phases = {
        "load": weights + workspace,
        "forward": resting + activations + loss // 2,
        "backward": resting + gradients + activations + loss,
        "optimizer": resting + gradients,
        "evaluate": resting + loss // 2,
    }
    peak_phase = max(phases, key=lambda name: phases[name])
    peak = phases[peak_phase]
    return Estimate(
        parameters=parameters,
        trainable=trainable,
        bytes={
            "weights": weights,
            "gradients": gradients,
            "optimizer": moments,
            "activations": activations,
            "loss": loss,
            "workspace": workspace,
        },
        phases=phases,
        peak_bytes=peak,
        peak_phase=peak_phase,
        disk=disk(spec, weights if whole else sum(sizes), sum(sizes) + moments),
        fits=None if memory_bytes is None else peak <= memory_bytes,
    )


def disk(spec: RunSpec, artifact: int, checkpoint: int) -> dict[str, int]:
    """Bytes that the run may hold on disk: the result, the kept checkpoints, one being written."""
    train = spec.train
    kept = 0 if train.save_every == 0 else train.keep_best + train.keep_last + 1
    if train.max_steps is not None and train.save_every:
        kept = min(kept, train.max_steps // train.save_every)
    return {"artifact": artifact, "checkpoint": checkpoint, "total": artifact + kept * checkpoint}


def _activations(config: Any, spec: RunSpec, tokens: int, *, all_train: bool) -> int:
    hidden: int = config.hidden_size
    feed_forward: int = getattr(config, "intermediate_size", None) or 4 * hidden
    layers: int = config.num_hidden_layers
    width = 2 if spec.train.precision == "float32" else 1
    a_layer = 24 * hidden + 8 * feed_forward if all_train else 40 * hidden + 10 * feed_forward
    if spec.train.activation_checkpointing == "on":
        return width * tokens * (2 * hidden * layers + a_layer)
    return width * tokens * layers * a_layer


def _loss(config: Any, spec: RunSpec, tokens: int) -> int:
    vocabulary: int = config.vocab_size
    hidden: int = config.hidden_size
    if spec.train.loss == "plain":
        return 12 * vocabulary * tokens
    chunk = min(1 << 24, tokens * vocabulary) * 4
    return 2 * chunk + 8 * hidden * tokens
