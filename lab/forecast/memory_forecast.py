"""The memory of a training step: traced on fake tensors, or added up from the outline of it.

What cannot be traced is counted as far as it goes, and never said to fit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from lab import methods
from lab.data.row_sizes import RowSizes
from lab.forecast import formula
from lab.forecast.model_profile import loss_kind, profile_model
from lab.forecasts import PARTS, How, MemoryForecast, Parts, Phases
from lab.spec import RunSpec

if TYPE_CHECKING:
    from lab.forecast.outline import Outline
    from lab.forecast.trace.allocation_log import Trace
    from lab.forecast.trace.trace_step import Batch
    from lab.forecast.trace.traced_step import TracedStep

# A CPU run's resident memory beyond the tensors: copies that kernels make, and the heap's holes.
CPU_SAFETY_FACTOR = 1.3
FEW_TOKENS = 512  # of a micro-batch, below which its sizes are on no line with larger ones


@dataclass(frozen=True)
class TraceOptions:
    """How the step of a forecast is traced: with CUDA's kernels and allocator or without, with
    several sequences in a row (`packed`, which takes a mask), step by step or as an outline
    (`traced`), and with every layer (`whole`) or those that are alike once. `rows`: the run's own,
    where they are known; else full ones are taken."""

    on_gpu: bool
    packed: bool = False
    traced: bool = True
    whole: bool = False
    rows: RowSizes | None = None


class StepFails(ValueError):
    """Raised where the training step itself raises, with tensors that hold data too."""


def predict_memory(
    config: Any,
    spec: RunSpec,
    options: TraceOptions,
    memory_bytes: int | None = None,
    short: Outline | None = None,
) -> MemoryForecast:
    """The memory of `spec` (resolved) with a model of `config`, held against `memory_bytes`.

    `short`: the outline of the step, if it is at hand. Raises ValueError where a library refuses
    the method, StepFails where the step itself fails.
    """
    profile = profile_model(config, spec)
    memory = formula.counted(profile.sizes, spec, on_gpu=options.on_gpu)
    try:
        trace, how = _trace(config, spec, options, short)
    except Exception as error:  # anything may stand in the code of an architecture
        message = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
        why = f"{type(error).__name__}: {message}"
        if _fails_for_real(error, config, spec, on_gpu=options.on_gpu):
            raise StepFails(f"its training step fails ({why}). Choose another method.") from None
        memory = replace(memory, trace_error=why)
    else:
        memory = _traced(memory, trace, how, on_gpu=options.on_gpu)
    return replace(memory, fits=memory.fits_into(memory_bytes))


def _trace(
    config: Any, spec: RunSpec, options: TraceOptions, short: Outline | None
) -> tuple[Trace, How]:
    from lab.forecast.outline import whole_step
    from lab.forecast.trace.layer_repetition import step

    if options.traced:
        return step(traced_step(config, spec, options), whole=options.whole)
    short, sizes = short or outline_of(config, spec, options), profile_model(config, spec).sizes
    return whole_step(short, sizes, spec.train.gradient_accumulation_steps), How.OUTLINE


def traced_step(config: Any, spec: RunSpec, options: TraceOptions) -> TracedStep:
    """The step of `spec` with a model of `config`, all its layers."""
    from lab.forecast.trace.traced_step import TracedStep

    profile, batch = profile_model(config, spec), batch_of(spec, options)
    return TracedStep(config, profile.layers, spec, batch, profile.loss, options.on_gpu)


def _fails_for_real(error: Exception, config: Any, spec: RunSpec, *, on_gpu: bool) -> bool:
    """Whether `error`, which ended a traced step, would end the run as well: it is none of tracing,
    and the base without the method can be traced."""
    from lab.forecast.trace.trace_step import is_of_tracing

    plain = methods.plainest()
    if is_of_tracing(error) or spec.method["name"] == plain.name:
        return False
    train = replace(spec.train, adapter_precision="float32", batch_size=1, optimizer="sgd")
    alone = replace(spec, method={"name": plain.name}, train=train)
    try:
        outline_of(config, alone, TraceOptions(on_gpu))
    except Exception:  # then nothing can be said of the method
        return False
    return True


def batch_of(spec: RunSpec, options: TraceOptions) -> Batch:
    """The shape of the largest micro-batch of `spec`, and of its largest evaluation batch."""
    from lab.forecast.trace.trace_step import Batch

    if options.rows is None:
        return Batch(spec.train.batch_size, spec.data.max_length, options.packed)
    passes = options.rows.passes(spec)
    train, evaluation = passes.largest, passes.held_out
    held_out = (
        Batch(evaluation.rows, evaluation.length, False, evaluation.counted)
        if evaluation
        else Batch(0, 0)
    )
    return Batch(train.rows, train.length, train.packed, train.counted, held_out)


def outline_of(config: Any, spec: RunSpec, options: TraceOptions) -> Outline:
    """The outline of the step of `spec`. Raises whatever cannot be traced."""
    from lab.forecast.outline import outline

    return outline(traced_step(config, spec, options))


def outline_for_any_rows(
    config: Any, spec: RunSpec, options: TraceOptions, most: int
) -> Outline | None:
    """The outline of the step of `spec` from those with `most` rows and with half as many, which
    are traced once for every number of rows; None where the step cannot be traced.

    A single row, few tokens, and rows that do not fill two chunks of the fused loss are on no line
    with more: the allocator rounds small tensors by a larger share. They are traced as they are.
    """
    from lab.forecast.outline import at_rows
    from lab.train.loss import largest_chunk

    batch_size, vocabulary = spec.train.batch_size, config.vocab_size
    chunk = largest_chunk(on_gpu=options.on_gpu) // vocabulary
    ends = (most // 2, most) if most > 1 else (1, 2)
    least = batch_of(_with_rows(spec, min(batch_size, ends[0])), options)
    tokens = least.rows * least.length if least.counted is None else least.counted
    few = max(FEW_TOKENS, 2 * chunk if loss_kind(config, spec) == "fused" else 0)
    if batch_size == 1 or tokens <= few:
        ends = (batch_size, batch_size)
    outlines = []
    for rows in sorted(set(ends)):
        try:
            short = outline_of(config, _with_rows(spec, rows), options)
        except Exception:  # `predict_memory` meets it again, and tells it
            return None
        outlines.append((rows, short))
    return at_rows(outlines[0], outlines[1], batch_size) if len(outlines) > 1 else outlines[0][1]


def _with_rows(spec: RunSpec, rows: int) -> RunSpec:
    """`spec` with that many rows in its one pass."""
    train = replace(spec.train, batch_size=rows, gradient_accumulation_steps=1)
    return replace(spec, train=train)


def _traced(counts: MemoryForecast, trace: Trace, how: How, *, on_gpu: bool) -> MemoryForecast:
    """`counts` with the figures of a traced step."""
    from lab.forecast.trace.allocation_log import Peak

    workspace = formula.CUBLAS_WORKSPACE if on_gpu else formula.CPU_LIBRARIES
    scale = 1.0 if on_gpu else CPU_SAFETY_FACTOR
    libraries = 0 if on_gpu else formula.CPU_LIBRARIES

    def whole_of(peak: Peak) -> int:
        return int(max(peak.counted, peak.total) * scale) + workspace

    assert counts.largest is not None and counts.phases is not None
    counted = counts.phases
    rest = {"weights": counts.largest.weights, "optimizer": counts.largest.optimizer}

    def beside_rest(phase: str) -> Peak:
        size = getattr(counted, phase) - counted.resume
        return Peak(sum(rest.values()) + size, {**rest, "loss": size})

    peaks = {**trace.peaks, "evaluate.probe": beside_rest("evaluate")}
    peaks |= {phase: beside_rest(phase) for phase in ("save", "resume")}
    phases: dict[str, int] = {}
    highest: dict[str, Peak] = {}
    for segment, peak in peaks.items():
        phase = segment.partition(".")[0]
        if whole_of(peak) > phases.get(phase, 0):
            phases[phase], highest[phase] = whole_of(peak), peak
    phases["load"] = int((counted.load - libraries) * scale) + libraries
    peak_phase = max(phases, key=lambda name: phases[name])
    top = highest[peak_phase]
    at_peak = {part: max(0, top.kinds.get(part, 0)) for part in PARTS}
    at_peak["workspace"] = phases[peak_phase] - sum(at_peak.values())
    # weights, gradients and moments are exact as they are
    activations, loss = (
        max(peak.kinds.get(part, 0) for peak in trace.peaks.values())
        for part in ("activations", "loss")
    )
    return replace(
        counts,
        largest=replace(
            counts.largest, activations=activations, loss=loss, workspace=at_peak["workspace"]
        ),
        at_peak=Parts(**at_peak),
        phases=Phases(**{phase.name: phases[phase.name] for phase in fields(Phases)}),
        peak_bytes=phases[peak_phase],
        peak_phase=peak_phase,
        launches=trace.launches,
        how=how,
        operation=top.operation,
        module=top.module,
        reserved_bytes=None if trace.reserved is None else trace.reserved + workspace,
    )
