"""The prediction for one spec: its step traced on fake tensors, or the outline of that step.

What cannot be traced is counted as far as it goes, and never said to fit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lab
from lab import methods, optimizers, paths
from lab.atomic_files import read_object, write_json
from lab.forecast import formula, rules_of_thumb
from lab.forecasts import PARTS, Forecast, How, MemoryForecast, Parts, Phases, StepSettings
from lab.methods import Method
from lab.models.decoder_structure import layers_if_any
from lab.models.stub_tokenizer import StubTokenizer
from lab.recent import Recent
from lab.spec import RunSpec

if TYPE_CHECKING:
    from lab.forecast.outline import Outline
    from lab.forecast.trace.allocation_log import Peak, Trace
    from lab.forecast.trace.trace_step import Batch

# Settings that a prediction depends on, by what they change.
STRUCTURE = ("precision", "adapter_precision", "optimizer", "momentum")
STEP = (
    *(
        "batch_size",
        "gradient_accumulation_steps",
        "loss_implementation",
        "max_grad_norm",
        "compile",
    ),
    *("activation_checkpointing", "checkpointed_layers"),
)
DISK = ("save_steps", "keep_best", "keep_last", "max_steps")
# What a prediction rests on: a cached one of other code is made again.
CODE = ("forecast", "forecasts.py", "methods", "models", "train", "optimizers.py")
# A CPU run's resident memory beyond the tensors: copies that kernels make, and the heap's holes.
CPU_SLACK = 1.3
TRACED = {
    How.OUTLINE: "outline",
    How.REPEATED_LAYERS: "layer extension",
    How.EVERY_LAYER: "full trace",
}
CHANGED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "logits_soft_cap")


def predict(
    config: Any,
    spec: RunSpec,
    method: Method,
    *,
    on_gpu: bool,
    memory_bytes: int | None,
    packed: bool = False,
    shadow: bool = True,
    whole: bool = False,
    tokenizer: Any = None,
    short: Outline | None = None,
) -> Forecast:
    """The memory and disk of `spec` (resolved) with a model of `config`.

    Full rows are assumed. `packed`: several sequences stand in a row, which takes a mask. Without
    `shadow` it is the outline of the step, `short` if that is at hand; with it the traced step,
    and `whole` traces every layer. Raises ValueError where a library refuses the method, StepFails
    where the step itself fails.
    """
    started = time.perf_counter()
    loss = loss_kind(config, spec)
    profile = measure(config, spec, method, tokenizer)
    memory = formula.counted(profile.sizes, spec, on_gpu=on_gpu)

    def trace() -> tuple[Trace, How]:
        from lab.forecast.outline import whole_step
        from lab.forecast.trace.layer_repetition import step

        batch, layers = batch_of(spec, packed), profile.layers
        if shadow:
            return step(config, layers, method, spec, batch, loss, on_gpu=on_gpu, whole=whole)
        parts = short or outline_of(config, spec, method, on_gpu=on_gpu, packed=packed)
        return whole_step(parts, profile.sizes, spec.train.gradient_accumulation_steps), How.OUTLINE

    try:
        step_trace, how = trace()
    except Exception as error:  # anything may stand in the code of an architecture
        message = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
        why = f"{type(error).__name__}: {message}"
        if _fails_for_real(error, config, spec, method, on_gpu=on_gpu):
            raise StepFails(f"its training step fails ({why}). Choose another method.") from None
        memory = dataclasses.replace(memory, trace_error=why)
    else:
        memory = _traced(memory, step_trace, how, on_gpu=on_gpu)
    memory = dataclasses.replace(memory, fits=memory.fits_into(memory_bytes))
    kind = rules_of_thumb.kind_of(memory.trainable, memory.parameters, profile.bits)
    return Forecast(
        memory=memory,
        disk=formula.disk_forecast(profile.sizes, spec),
        settings=_settings(spec, loss, packed),
        device="cuda" if on_gpu else "cpu",
        rules=rules_of_thumb.rules(memory.parameters, kind, profile.base),
        notes=_notes(spec, loss, profile, memory),
        seconds=round(time.perf_counter() - started, 3),
    )


def _notes(spec: RunSpec, loss: str, profile: Measured, memory: MemoryForecast) -> tuple[str, ...]:
    """What a person may want to know of the figure; nothing else reads it."""
    notes = []
    if loss != spec.train.loss_implementation:
        notes.append("This architecture post-processes its logits, so the plain loss is used.")
    if not optimizers.get(spec.train.optimizer).on_cpu:
        notes.append("Paged optimizer states are counted, although they may move to CPU memory.")
    if profile.assumes_tokens:
        notes.append("The special tokens are those that the config names; no tokenizer was read.")
    if spec.train.compile == "on":
        notes.append("Compiled layers are not traced: the figure is that of layers as they are.")
    if memory.trace_error:
        why = memory.trace_error
        notes.append(f"The step could not be traced ({why}). What it needs at least is counted.")
    else:
        notes.append(f"Shadow step, {TRACED[memory.how]}.")
    return tuple(notes)


class StepFails(ValueError):
    """Raised where the training step itself raises, with tensors that hold data too."""


def _fails_for_real(
    error: Exception, config: Any, spec: RunSpec, method: Method, *, on_gpu: bool
) -> bool:
    """Whether `error`, which ended a traced step, would end the run as well: it is none of tracing,
    and the base without the method can be traced."""
    from lab.forecast.trace.trace_step import is_of_tracing

    plain = methods.plainest()
    if is_of_tracing(error) or method is plain:
        return False
    train = dataclasses.replace(
        spec.train, adapter_precision="float32", batch_size=1, optimizer="sgd"
    )
    alone = dataclasses.replace(spec, method={"name": plain.name}, train=train)
    try:
        outline_of(config, alone, plain, on_gpu=on_gpu, packed=False)
    except Exception:  # then nothing can be said of the method
        return False
    return True


def batch_of(spec: RunSpec, packed: bool) -> Batch:
    """The shape of a micro-batch of `spec`."""
    from lab.forecast.trace.trace_step import Batch

    return Batch(spec.train.batch_size, spec.data.max_length, packed)


def outline_of(
    config: Any, spec: RunSpec, method: Method, *, on_gpu: bool, packed: bool
) -> Outline:
    """The outline of the step of `spec`. Raises whatever cannot be traced."""
    from lab.forecast.outline import outline

    layers = measure(config, spec, method).layers
    batch, loss = batch_of(spec, packed), loss_kind(config, spec)
    return outline(config, layers, method, spec, batch, loss, on_gpu=on_gpu)


def for_any_rows(
    config: Any, spec: RunSpec, method: Method, most: int, *, on_gpu: bool, packed: bool
) -> Outline | None:
    """The outline of the step of `spec` from those with `most` rows and with half as many, which
    are traced once for every number of rows; None where the step cannot be traced.

    Where the rows do not fill a chunk of the fused loss, sizes are on no line with those that do:
    they are traced as they are.
    """
    from lab.forecast.outline import at_rows
    from lab.train.loss import CHUNK_ELEMENTS

    own, chunk = spec.train.batch_size, CHUNK_ELEMENTS // config.vocab_size
    ends = (most // 2, most) if most > 1 else (1, 2)
    if loss_kind(config, spec) == "fused" and min(own, ends[0]) * spec.data.max_length <= chunk:
        ends = (own, own)
    outlines = []
    for rows in sorted(set(ends)):
        train = dataclasses.replace(spec.train, batch_size=rows, gradient_accumulation_steps=1)
        few = dataclasses.replace(spec, train=train)
        try:
            short = outline_of(config, few, method, on_gpu=on_gpu, packed=packed)
        except Exception:  # `predict` meets it again, and tells it
            return None
        outlines.append((rows, short))
    return at_rows(outlines[0], outlines[1], own) if len(outlines) > 1 else outlines[0][1]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the structure of a model with its method says, whatever the rows."""

    sizes: formula.Sizes
    layers: tuple[Any, ...]  # a signature for each decoder layer
    bits: int  # of the base's linear layers
    base: int  # parameters of the base
    costs: dict[str, Any]  # floating-point operations by the kind of loss
    head_is_plain: bool  # the fused loss works on such a head only
    assumes_tokens: bool = False  # what only the tokenizer knows was taken from the config


_measured: Recent[str, Measured] = Recent(256)


def measure(config: Any, spec: RunSpec, method: Method, tokenizer: Any = None) -> Measured:
    """The structure for `spec`, built on the meta device the first time that it is asked for."""
    from lab.forecast.trace.meta_model import build, signatures
    from lab.train import flops
    from lab.train.loss import is_plain

    train = spec.train
    settings = [getattr(train, name) for name in STRUCTURE]
    tokens = tokenizer and [len(tokenizer), sorted(tokenizer.all_special_ids)]
    parts = (config.to_dict(), spec.method, settings, tokens)
    name = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    profile = _measured.get(name)
    if profile is not None:
        return profile
    plain = dataclasses.replace(train, activation_checkpointing="off")
    if tokenizer is None:
        tokenizer = StubTokenizer(config)
        method.extend_tokenizer(tokenizer, spec.method_config)
    model, quantised, base = build(
        config, dataclasses.replace(spec, train=plain), method, tokenizer
    )
    return _measured.put(
        name,
        Measured(
            formula.sizes(model, spec, quantised),
            tuple(signatures(layers_if_any(model))),
            quantised.bits if quantised else 16,
            base,
            {
                kind: flops.count(model, kind, method.virtual_tokens(spec.method_config))
                for kind in ("fused", "plain")
            },
            is_plain(model.get_output_embeddings()),
            getattr(tokenizer, "was_asked", False),
        ),
    )


def _traced(counts: MemoryForecast, trace: Trace, how: How, *, on_gpu: bool) -> MemoryForecast:
    """`counts` with the figures of a traced step."""
    workspace = formula.CUBLAS_WORKSPACE if on_gpu else formula.CPU_LIBRARIES
    scale = 1.0 if on_gpu else CPU_SLACK

    def whole_of(peak: Peak) -> int:
        return int(max(peak.counted, peak.total) * scale) + workspace

    phases: dict[str, int] = {}
    highest: dict[str, Peak] = {}
    for segment, peak in trace.peaks.items():
        phase = segment.partition(".")[0]
        if whole_of(peak) > phases.get(phase, 0):
            phases[phase], highest[phase] = whole_of(peak), peak
    assert counts.largest is not None
    resting = int((counts.largest.weights + counts.largest.optimizer) * scale) + workspace
    phases |= {"save": resting, "resume": resting}
    peak_phase = max(phases, key=lambda name: phases[name])
    top = highest[peak_phase]
    at_peak = {part: max(0, top.kinds.get(part, 0)) for part in PARTS}
    at_peak["workspace"] = phases[peak_phase] - sum(at_peak.values())
    # weights, gradients and moments are exact as they are
    activations, loss = (
        max(peak.kinds.get(part, 0) for peak in trace.peaks.values())
        for part in ("activations", "loss")
    )
    return dataclasses.replace(
        counts,
        largest=dataclasses.replace(
            counts.largest, activations=activations, loss=loss, workspace=at_peak["workspace"]
        ),
        at_peak=Parts(**at_peak),
        phases=Phases(**{phase.name: phases[phase.name] for phase in dataclasses.fields(Phases)}),
        peak_bytes=phases[peak_phase],
        peak_phase=peak_phase,
        launches=trace.launches,
        how=how,
        operation=top.operation,
        module=top.module,
        reserved_bytes=None if trace.reserved is None else trace.reserved + workspace,
    )


def loss_kind(config: Any, spec: RunSpec) -> str:
    """The loss that the worker will use: plain where the logits are changed after the head."""
    changes = any(getattr(config, name, None) not in (None, 1, 1.0) for name in CHANGED_LOGITS)
    return "plain" if changes else spec.train.loss_implementation


def _settings(spec: RunSpec, loss: str, packed: bool) -> StepSettings:
    """The settings that the figure rests on."""
    train = spec.train
    return StepSettings(
        batch_size=train.batch_size,
        max_length=spec.data.max_length,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        precision=train.precision,
        adapter_precision=train.adapter_precision,
        activation_checkpointing=train.activation_checkpointing,
        checkpointed_layers=train.checkpointed_layers,
        loss=loss,
        optimizer=train.optimizer,
        packed=packed,
    )


def key(config: Any, spec: RunSpec, **how: Any) -> str:
    """Hash of all that a prediction depends on: contents, not names."""
    train = spec.train
    relevant = {
        "code": _code(),
        "packages": {
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "peft", "bitsandbytes")
        },
        "config": config.to_dict(),
        "method": spec.method,
        "train": {name: getattr(train, name) for name in (*STRUCTURE, *STEP, *DISK)},
        "length": spec.data.max_length,
        # left out is the same as given with its default
        "how": {"packed": False, "shadow": True, "whole": False, **how},
    }
    text = json.dumps(relevant, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _code() -> str:
    """Hash of the sources that make predictions."""
    found = hashlib.sha256()
    for name in CODE:
        place = Path(lab.__file__).parent / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found.update(file.read_bytes())
    return found.hexdigest()


def _cached_file(name: str) -> Path:
    return paths.home() / "cache" / "memory" / f"{name}.json"


def cached(
    config: Any, spec: RunSpec, method: Method, *, memory_bytes: int | None, **how: Any
) -> Forecast:
    """`predict`, or its answer to the same question before."""
    file = _cached_file(key(config, spec, **how))
    stored = read_object(file)
    forecast = Forecast.from_json(stored)
    if forecast is not None and forecast.to_json() == stored:  # it is whole
        fits = forecast.memory.fits_into(memory_bytes)
        return dataclasses.replace(forecast, memory=dataclasses.replace(forecast.memory, fits=fits))
    forecast = predict(config, spec, method, memory_bytes=memory_bytes, **how)
    try:
        paths.make_folder(file.parent)
        write_json(file, forecast.to_json(), durable=False)
    except OSError:
        return forecast  # a full or read-only disk costs the cache, not the answer
    return forecast
