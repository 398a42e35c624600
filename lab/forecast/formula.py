"""Closed forms for memory and disk: instant, from the model's structure.

Legend: T tokens in a micro-batch, V vocabulary, L layers. All in bytes. Weights, gradients and
moments are counted from the model's own tensors; what a layer keeps for its backward pass stands in
`kept.py`. Checkpointing keeps the residual stream for each layer and
one layer whole. The plain loss needs 12VT at the start of the backward pass, while there are no
gradients yet; the fused one two chunks of logits and the gradients of its inputs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lab import methods, optimizers
from lab.forecast import saved_activations as layer_memory
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

    def to_json(self) -> dict[str, Any]:
        return {"v": 1, **asdict(self)}


@dataclass(frozen=True)
class Sizes:
    """What the closed forms need of a model."""

    parameters: int
    trainable: int
    weights: int
    own: int  # bytes of the weights that train
    gradients: int
    moments: int
    hidden: int
    vocabulary: int
    layers: int
    kept: float  # bytes a token that one layer keeps without checkpointing
    casts: int  # bytes of the 16-bit copies of float32 weights that are kept, all layers
    residual: int  # bytes a token of the residual stream
    head_trains: bool
    updating: int = 0  # bytes that the update works in
    virtual: int = 0  # positions before each row that pass through all layers


def sizes(
    model: Any, spec: RunSpec, quantised: Any = None, frozen_bytes: int | None = None
) -> Sizes:
    """The sizes of `model` (on the meta device, method applied, types set)."""
    from lab.forecast.trace.meta_model import stored_bytes
    from lab.forecast.trace.trace_step import decoder_layers

    config = model.config
    everything = list(model.parameters())
    own = [weight for weight in everything if weight.requires_grad]
    hidden: int = config.hidden_size
    layers = decoder_layers(model)
    passed, attended = methods.get(spec.method["name"]).virtual_tokens(spec.method_config)
    residual = 2 if spec.train.precision == "bfloat16" else 4
    middle = layers[len(layers) // 2] if layers else None
    embedding = model.get_output_embeddings()
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
        hidden=hidden,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        kept=layer_memory.kept(middle, config, spec, has_prefix=attended > 0),
        casts=layer_memory.copies(layers, spec),
        residual=residual * hidden,
        virtual=passed,
        head_trains=any(weight.requires_grad for weight in embedding.parameters())
        if embedding is not None
        else False,
    )


def estimate(
    model: Any,
    spec: RunSpec,
    *,
    on_gpu: bool,
    memory_bytes: int | None,
    quantised: Any = None,
    loss_kind: str = "",
    frozen_bytes: int | None = None,
) -> Estimate:
    """The peak of each phase for `model` (on the meta device, method applied, types set).

    `memory_bytes` is what the device has free; None leaves `fits` open. `frozen_bytes` is the
    size of the base where it is stored in fewer bits than the model on the meta device says.
    """
    found = sizes(model, spec, quantised, frozen_bytes)
    return from_sizes(found, spec, on_gpu=on_gpu, memory_bytes=memory_bytes, loss_kind=loss_kind)


def from_sizes(
    found: Sizes, spec: RunSpec, *, on_gpu: bool, memory_bytes: int | None, loss_kind: str = ""
) -> Estimate:
    """The same, from sizes taken before: for the same model and method at other lengths."""
    own = spec.train.batch_size * spec.data.max_length
    tokens = own + spec.train.batch_size * found.virtual
    forward_loss, backward_loss = _loss(found, spec, own, loss_kind or spec.train.loss)
    one_layer = int(tokens * found.kept) + found.casts // max(1, found.layers)
    recomputed = _recomputed(found, spec)
    kept = tokens * found.residual * recomputed
    if recomputed < found.layers:
        share = 1 - recomputed / found.layers
        kept += int((tokens * found.kept * found.layers + found.casts) * share)
    work = tokens * 14 * found.hidden  # buffers of the backward pass of one layer
    workspace = CUBLAS_WORKSPACE if on_gpu else CPU_LIBRARIES
    accumulated = found.gradients if spec.train.accumulation > 1 else 0
    resting = found.weights + found.moments + workspace
    head = 2 * found.vocabulary * found.hidden if found.head_trains else 0
    places = {
        "start": kept + max(backward_loss, forward_loss),
        "last layer": kept + head + (one_layer if recomputed == found.layers else 0) + work,
        "first layer": found.gradients + one_layer + work,
    }
    if (
        0 < recomputed < found.layers
    ):  # backward reaches the first checkpointed layer; later layers are freed
        done = int(found.gradients * (1 - recomputed / found.layers))
        places["middle"] = done + tokens * found.residual * recomputed + one_layer + work
    phases = {
        "load": found.weights + workspace,
        "forward": resting + accumulated + kept + forward_loss,
        "backward": resting + accumulated + max(places.values()),
        "optimizer": resting + found.gradients + found.updating,
        "evaluate": resting + forward_loss,
        "save": resting,
        "resume": resting,
    }
    peak_phase = max(phases, key=lambda name: phases[name])
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer": found.moments,
        "activations": kept + (one_layer if recomputed else 0),
        "loss": max(backward_loss, forward_loss),
        "workspace": workspace,
    }
    peak = phases[peak_phase]
    place = max(places, key=lambda name: places[name]) if peak_phase == "backward" else peak_phase
    at_peak = {
        **parts,
        "gradients": {"start": 0, "last layer": head, "forward": 0}.get(place, found.gradients),
        "loss": parts["loss"] if place in ("start", "forward") else 0,
    }
    at_peak["activations"] = max(0, peak - sum(at_peak.values()) + at_peak["activations"])
    whole = methods.get(spec.method["name"]).saves_whole_model
    return Estimate(
        parameters=found.parameters,
        trainable=found.trainable,
        bytes=parts,
        at_peak=at_peak,
        phases=phases,
        peak_bytes=peak,
        peak_phase=peak_phase,
        disk=disk(spec, found.weights if whole else found.own, found.own + found.moments),
        fits=None if memory_bytes is None else peak <= memory_bytes,
        device="cuda" if on_gpu else "cpu",
        is_bound=not on_gpu,
    )


def disk(spec: RunSpec, artifact: int, checkpoint: int) -> dict[str, int]:
    """Bytes that the run may hold on disk: the result, the kept checkpoints, one being written."""
    train = spec.train
    kept = 0 if train.save_every == 0 else train.keep_best + train.keep_last + 1
    if train.max_steps is not None and train.save_every:
        kept = min(kept, train.max_steps // train.save_every)
    return {"artifact": artifact, "checkpoint": checkpoint, "total": artifact + kept * checkpoint}


def _recomputed(found: Sizes, spec: RunSpec) -> int:
    """Layers whose activations are made again in the backward pass."""
    if spec.train.activation_checkpointing != "on":
        return 0
    return min(found.layers, spec.train.checkpointed_layers or found.layers)


def _loss(found: Sizes, spec: RunSpec, tokens: int, kind: str) -> tuple[int, int]:
    """(bytes at the end of the forward pass, at the start of the backward pass)."""
    if kind == "plain":
        logits = 4 if spec.train.precision == "float32" else 2
        return (8 + (0 if logits == 4 else 2)) * found.vocabulary * tokens, (
            12 * found.vocabulary * tokens
        )
    chunk = min(1 << 24, tokens * found.vocabulary)
    copies = 10 * chunk + 2 * found.residual * tokens
    if found.head_trains:
        matrix = found.vocabulary * found.hidden
        return copies + 6 * matrix, found.residual * tokens + 2 * matrix
    return copies, found.residual * tokens
