"""Estimates run time before the start: FLOPs divided by the FLOP/s the device achieves.

What is reached is the median of this machine's finished runs (`target_device.py`). The factors
were measured on one H100 with rows of 1,024 tokens and hold to a fifth or so: they rank settings,
and say whether a run takes minutes or hours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lab.forecast.formula import Sizes
from lab.forecast.target_device import TargetDevice
from lab.forecasts import DatasetStats, RuntimeForecast
from lab.spec import RunSpec

LAYER_S = 0.3e-3  # a pass through one layer and back costs this beside the work itself
PLAIN_LOSS = 1.02  # the plain loss moves whole logits through memory
WIDE_ADAPTERS = 1.17  # casts in every layer, with float32 adapters beside 16-bit weights
FOUR_BITS = 1.1  # weights are turned back for every product
COMPILED = 1.27  # compiled layers are that much faster,
COMPILE_S = 60.0  # once this has passed
EVALUATIONS = 10  # in a run, where the spec leaves it open
WORTH = 0.1  # share of the run that compiling must save, to be chosen


@dataclass(frozen=True)
class Course:
    """What a run goes through: rows of `length` tokens on average, `counted` of them in the loss,
    in sequences of `sequence` tokens."""

    steps: int
    tokens: float
    length: float
    sequence: float
    counted: float


def seconds_a_token(
    spec: RunSpec,
    costs: Any,
    sizes: Sizes,
    device: TargetDevice,
    course: Course | None = None,
    bits: int = 16,
) -> float:
    """Of training, at full rows unless `course` says what stands in them."""
    full = float(spec.data.max_length)
    length, sequence, counted = (
        (course.length, course.sequence, course.counted) if course else (full, full, full)
    )
    work = costs.per_token + costs.per_loss_token * counted / length
    work += costs.per_token_pair * sequence
    train = spec.train
    if train.activation_checkpointing == "on":
        share = (train.checkpointed_layers or sizes.layers) / sizes.layers
        work += 2.0 * share * (sizes.parameters - sizes.vocabulary * sizes.hidden)
    if train.loss == "plain":
        work *= PLAIN_LOSS
    launch = sizes.layers * LAYER_S / (train.batch_size * length)
    if not device.on_gpu:
        return float(work / (device.flops * device.reached)) + launch
    if bits == 4:
        work *= FOUR_BITS
    has_adapters = sizes.trainable < 0.5 * sizes.parameters
    if has_adapters and train.precision == "bfloat16" and train.adapter_precision == "float32":
        work *= WIDE_ADAPTERS
    if train.compile == "on":
        work *= full / length / COMPILED  # static shapes: sequences are padded to full length
    return float(work / (device.flops * device.reached)) + launch


def course(spec: RunSpec, stats: DatasetStats, flops_a_token: float) -> Course | None:
    """The steps and tokens of a run on data of which `stats` tell; None where neither they nor a
    budget do.

    Seconds as a budget leave the end open: the caller knows them.
    """
    train, data = spec.train, spec.data
    has_budget = any((train.max_steps, train.max_tokens, train.max_flops, train.max_seconds))
    if not stats.tokens_per_row:
        if not has_budget:
            return None
        stats = DatasetStats()  # full rows, as many as it takes
    sequence = float(stats.tokens_per_row or data.max_length)
    counted = float(stats.loss_tokens_per_row or sequence) / sequence
    examples = min(stats.examples, data.max_examples or stats.examples)
    sequences = examples * float(stats.sequences_per_example or 1.0)
    sequences *= (1 - (0.0 if data.held_out else data.eval_fraction)) / (1 - data.general_mix)
    length, rows = sequence, sequences
    if data.packing == "on":
        together = max(1.0, math.floor(data.max_length / sequence))
        length, rows = sequence * together, max(1.0, sequences / together)
    per_step = train.batch_size * train.accumulation
    steps = float(math.ceil(train.epochs * rows / per_step))
    limits = [
        train.max_steps,
        train.max_tokens and train.max_tokens / (per_step * length),
        train.max_flops and train.max_flops / (per_step * length * flops_a_token),
    ]
    given = [float(limit) for limit in limits if limit]
    if given:
        steps = min(given)
    elif train.max_seconds:
        steps = math.inf
    whole = max(1, math.ceil(steps)) if math.isfinite(steps) else 0
    return Course(whole, whole * per_step * length, length, sequence, counted * length)


def pace(
    spec: RunSpec,
    costs: Any,
    sizes: Sizes,
    device: TargetDevice,
    stats: DatasetStats,
    bits: int = 16,
) -> RuntimeForecast | None:
    """The prediction for a run on data of which `stats` tell."""
    found = course(spec, stats, costs.per_token + costs.per_loss_token)
    if found is None:
        return None
    each = seconds_a_token(spec, costs, sizes, device, found, bits)
    tokens, steps = found.tokens, found.steps
    seconds = tokens * each + (COMPILE_S if spec.train.compile == "on" and device.on_gpu else 0.0)
    limit = spec.train.max_seconds
    if limit and (not steps or seconds > limit):
        seconds, tokens = limit, limit / each
        steps = math.ceil(tokens / (spec.train.batch_size * spec.train.accumulation * found.length))
    examples = min(stats.examples, spec.data.max_examples or math.inf)
    share = 0.0 if spec.data.held_out else spec.data.eval_fraction  # of a set of its own, unknown
    held = examples * share * found.sequence
    every = spec.train.eval_every
    times = EVALUATIONS if every is None else steps // every if every else 1
    evaluating = (1 + min(times, steps)) * held * each / 3  # the pass forward alone
    watts = device.watts
    return RuntimeForecast(
        steps=steps,
        tokens=round(tokens),
        tokens_per_s=round(1 / each, 1),
        seconds=round(seconds, 3),
        evaluating_s=round(evaluating, 3),
        energy_wh=None if watts is None else round(watts * (seconds + evaluating) / 3600, 3),
        is_measured=device.is_measured,
        rate=device.flops * device.reached,
        launch_s=sizes.layers * LAYER_S / (spec.train.batch_size * found.length),
        packing=spec.data.packing,
    )


def compiling_pays(plain: RuntimeForecast, compiled: RuntimeForecast) -> bool:
    """Whether compiled layers save a share of the run that is worth their start."""
    return compiled.seconds < (1 - WORTH) * plain.seconds
