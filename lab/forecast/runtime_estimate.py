"""Estimates the time of a run before its start: its work, its kernels' launches, and its phases.

A pass takes the longer of two things that go on side by side: the work (floating-point operations
at the rate that the device reaches, or the bytes that it moves) and the launching of its kernels,
which are counted in the traced step. LAUNCH_S is the one constant of the second, set from five
passes of an H100 that it binds (tokens a second, measured and predicted with it): GPT-2 full
4 x 128 14.1k and 11.3k, LoRA on c_attn 11.5k and 14.4k; Llama-3.2-3B LoRA 4 x 512 7.9k and 7.8k,
full 2 x 256 with checkpointing 2.4k and 2.9k; Llama-3.1-8B LoRA r64 2 x 512 3.9k and 3.4k. It
belongs to that machine's processor as much as to its GPU.
DEFAULT_MFU and the factors were measured there with rows of 1,024 tokens, and hold to a fifth or
so. Runs that have finished on this machine correct both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lab import methods
from lab.data.row_sizes import RowSizes
from lab.forecast.formula import PROMPT_TOKENS, ModelSizes
from lab.forecast.model_profile import ModelProfile
from lab.forecast.target_device import TargetDevice
from lab.forecasts import DatasetStats, RuntimeForecast
from lab.spec import RunSpec

LAUNCH_S = 35e-6  # for each kernel of a step, with the Python around it
LAUNCHES_A_LAYER = 120  # forward and back, where nothing was traced
OVERLAP_POWER = (
    4.0  # work and launches side by side take the root of the sum of these powers: near max
)
CPU_LAUNCH_S = 10e-6  # an operation on a processor, beside its work
BANDWIDTH = {True: 2e12, False: 15e9}  # bytes a second of a GPU and a processor that are not known
FILES = 0.5e9  # bytes a second that are read and hashed, or written
IMPORTS_S = 9.0  # of a worker: Python, torch, transformers
SAMPLES_PER_RUN = 3  # in a run, where the spec leaves it open,
SAMPLED = 100  # with so many tokens each time
SAVES = 5  # in a run, where the spec leaves it open
PLAIN_LOSS = 1.02  # the plain loss moves whole logits through memory
FLOAT32_ADAPTER_COST = 1.17  # casts in every layer, with float32 adapters beside 16-bit weights
DEQUANTISE_COST = 1.1  # weights are turned back for every product
COMPILE_SPEEDUP = 1.27  # compiled layers are that much faster,
COMPILE_S = 60.0  # once this has passed
EVALUATIONS = 10  # in a run, where the spec leaves it open
BOUND = 0.9  # share of a pass's time from which on launches are what it takes
MIN_COMPILE_GAIN = 0.1  # share of the run that compiling must save, to be chosen


@dataclass(frozen=True)
class TrainingVolume:
    """What a run goes through: rows of `length` tokens on average, `counted` of them in the loss,
    in sequences of `sequence` tokens. `width`: tokens of a row with its padding. `held_out`: tokens
    of all held-out rows with theirs."""

    steps: int
    tokens: float
    length: float
    sequence: float
    counted: float
    width: float
    held_out: float


def seconds_per_token(
    spec: RunSpec,
    profile: ModelProfile,
    device: TargetDevice,
    volume: TrainingVolume | None = None,
    launches: int = 0,
) -> float:
    """Of training, at full rows unless `volume` says what stands in them. `launches`: kernels of a
    pass, as the traced step counts them; 0 where it was not traced."""
    costs, sizes = profile.costs[profile.loss], profile.sizes
    full = float(spec.data.max_length)
    volume = volume or TrainingVolume(0, 0.0, full, full, full, full, 0.0)
    length = volume.length
    # padding is worked on like tokens, but for the loss
    padded = volume.width / length
    work = padded * costs.per_token + costs.per_loss_token * volume.counted / length
    span = volume.sequence if spec.data.packing == "on" else volume.width
    work += padded * costs.per_token_pair * span
    train = spec.train
    if train.activation_checkpointing == "on":
        share = (train.checkpointed_layers or sizes.layers) / sizes.layers
        work += padded * 2.0 * share * (sizes.parameters - sizes.vocabulary * sizes.hidden)
    if train.loss_implementation == "plain":
        work *= PLAIN_LOSS
    tokens = train.batch_size * length
    launch = launch_seconds(sizes, launches, device) / tokens
    speed = device.bandwidth or BANDWIDTH[device.on_gpu]
    # weights are read forward and back; the update reads weights, gradients and state and writes
    moved = 2.0 * sizes.weights / tokens
    update = 2.0 * sizes.trainable_bytes + 2.0 * sizes.optimizer_bytes + 3.0 * sizes.gradient_bytes
    updating = update / speed / (tokens * train.gradient_accumulation_steps)
    rate = device.flops * device.reached
    if not device.on_gpu:
        return float(max(work / rate, moved / speed)) + launch + updating
    if profile.bits == 4:
        work *= DEQUANTISE_COST
    has_adapters = sizes.trainable < 0.5 * sizes.parameters
    if has_adapters and train.precision == "bfloat16" and train.adapter_precision == "float32":
        work *= FLOAT32_ADAPTER_COST
    together = side_by_side(max(work / rate, moved / speed), launch)
    return together / (COMPILE_SPEEDUP if train.compile == "on" else 1.0) + updating


def launch_seconds(sizes: ModelSizes, launches: int, device: TargetDevice) -> float:
    """Of the kernels of one pass, which were counted or are guessed."""
    count = launches or LAUNCHES_A_LAYER * sizes.layers
    return count * (LAUNCH_S * device.launching if device.on_gpu else CPU_LAUNCH_S)


def side_by_side(work: float, launch: float) -> float:
    """Seconds of two things that go on at once: hardly more than the longer one takes."""
    return float((work**OVERLAP_POWER + launch**OVERLAP_POWER) ** (1 / OVERLAP_POWER))


def training_volume(
    spec: RunSpec, stats: DatasetStats, flops_per_token: float, known: RowSizes | None = None
) -> TrainingVolume | None:
    """The steps and tokens of a run on data of which `stats` tell, or of the rows that are `known`;
    None where neither they nor a budget do.

    Seconds as a budget leave the end open: the caller knows them.
    """
    train, data = spec.train, spec.data
    has_budget = any((train.max_steps, train.max_tokens, train.max_flops, train.max_seconds))
    if not stats.tokens_per_row and known is None:
        if not has_budget:
            return None
        stats = DatasetStats()  # full rows, as many as it takes
    if known is not None:
        passes = known.passes(spec)
        length, rows, width = passes.tokens, float(passes.rows), passes.width
        sequence, counted = passes.sequence, passes.counted / passes.tokens
        held_out = passes.held_out_tokens
    else:
        sequence = float(stats.tokens_per_row or data.max_length)
        counted = float(stats.loss_tokens_per_row or sequence) / sequence
        examples = min(stats.examples, data.max_examples or stats.examples)
        sequences = examples * float(stats.sequences_per_example or 1.0)
        # of a set of its own, unknown
        held_share = data.held_out_fraction
        held_out = examples * held_share * sequence
        sequences *= (1 - held_share) / (1 - data.general_fraction)
        length, rows, width = sequence, sequences, sequence * (stats.padding or 1.0)
        if data.packing == "on":
            together = max(1.0, math.floor(data.max_length / sequence))
            length, rows = sequence * together, max(1.0, sequences / together)
            width = length
        if train.compile == "on":  # of one length
            width = float(data.max_length)
    per_step = train.batch_size * train.gradient_accumulation_steps
    steps = float(math.ceil(train.epochs * rows / per_step))
    limits = [
        train.max_steps,
        train.max_tokens and train.max_tokens / (per_step * length),
        train.max_flops and train.max_flops / (per_step * length * flops_per_token),
    ]
    budgets = [float(limit) for limit in limits if limit]
    if budgets:
        steps = min(budgets)
    elif train.max_seconds:
        steps = math.inf
    whole = max(1, math.ceil(steps)) if math.isfinite(steps) else 0
    taken = float(whole * per_step)
    if not has_budget:  # the last step may have fewer
        taken = min(taken, max(1.0, train.epochs * rows))
    return TrainingVolume(
        whole, taken * length, length, sequence, counted * length, width, held_out
    )


def runtime_forecast(
    spec: RunSpec,
    profile: ModelProfile,
    device: TargetDevice,
    stats: DatasetStats,
    launches: int = 0,
    rows: RowSizes | None = None,
) -> RuntimeForecast | None:
    """The prediction for a run on data of which `stats` tell, all its phases; None where its length
    is not known."""
    costs, sizes = profile.costs[profile.loss], profile.sizes
    volume = training_volume(spec, stats, costs.per_token + costs.per_loss_token, rows)
    if volume is None:
        return None
    each = seconds_per_token(spec, profile, device, volume, launches)
    tokens, steps = volume.tokens, volume.steps
    seconds = tokens * each + (COMPILE_S if spec.train.compile == "on" and device.on_gpu else 0.0)
    limit = spec.train.max_seconds
    if limit and (not steps or seconds > limit):
        seconds, tokens = limit, limit / each
        steps = math.ceil(
            tokens
            / (spec.train.batch_size * spec.train.gradient_accumulation_steps * volume.length)
        )
    every = spec.train.eval_steps
    times = EVALUATIONS if every is None else steps // every if every else 1
    # the pass forward alone; `each` is for a token with the padding that comes with it
    evaluating = (1 + min(times, steps)) * volume.held_out * volume.length / volume.width * each / 3
    watts = device.watts
    train = spec.train
    whole = methods.get(spec.method["name"]).saves_whole_model
    artifact = sizes.weights if whole else sizes.trainable_bytes
    # without held-out rows nothing is measured on the way
    probes = min(times, steps) if volume.held_out else 0
    saves = SAVES if train.save_steps is None else train.save_steps and steps // train.save_steps
    saved = artifact + min(saves, steps) * (
        sizes.trainable_bytes + sizes.optimizer_bytes + sizes.score_bytes
    )
    launch = launch_seconds(sizes, launches, device)
    return RuntimeForecast(
        steps=steps,
        tokens=round(tokens),
        tokens_per_s=round(1 / each, 1),
        seconds=round(seconds, 3),
        evaluating_s=round(evaluating, 3),
        energy_wh=None if watts is None else round(watts * (seconds + evaluating) / 3600, 3),
        is_measured=device.is_measured,
        rate=device.flops * device.reached,
        launch_s=launch / (train.batch_size * volume.length),
        launching=device.launching,
        packing=spec.data.packing,
        loading_s=round(device.beside * (IMPORTS_S + sizes.weights / FILES), 3),
        sampling_s=round(device.beside * _sampling(spec, sizes, device, launch, steps), 3),
        saving_s=round(device.beside * saved / FILES, 3),
        probing_s=round(device.beside * _probing(spec, sizes, device, launch, probes), 3),
        beside=device.beside,
    )


def _sampling(
    spec: RunSpec, sizes: ModelSizes, device: TargetDevice, launch: float, steps: int
) -> float:
    """Seconds of the sample answers: for each token a pass forward."""
    every = spec.train.sample_steps
    times = SAMPLES_PER_RUN if every is None else every and 2 + steps // every
    return min(times, steps + 1) * SAMPLED * _forward(1, sizes, device, launch)


def _probing(
    spec: RunSpec, sizes: ModelSizes, device: TargetDevice, launch: float, evaluations: int
) -> float:
    """Seconds of the forgetting probe: a part of it at each of the `evaluations`, the whole of the
    base and at the end. Each reads chats and choices, and writes answers token by token, which do
    not end early. What the base is asked once and for all runs is not in it."""
    if spec.train.forgetting_probe != "on":
        return 0.0
    from lab.train import behaviour, choice_probe, forgetting, forgetting_probe

    def forward(tokens: int) -> float:
        return _forward(tokens, sizes, device, launch)

    chat = PROMPT_TOKENS + forgetting.MAX_NEW_TOKENS
    questions = choice_probe.questions()[: choice_probe.LIVE_QUESTIONS]
    choosing = sum(forward(len(each.choices) * PROMPT_TOKENS) for each in questions)
    writing = behaviour.MAX_NEW_TOKENS * forward(len(behaviour.PROMPTS))

    def measuring(chats: int) -> float:
        reading = chats / forgetting.ROWS * forward(forgetting.ROWS * chat)
        return reading + choosing + writing

    lost = forgetting_probe.LOST_TOKENS * forward(forgetting_probe.LOST)
    at_both_ends = 2 * measuring(len(forgetting.prompts())) + lost
    return at_both_ends + evaluations * measuring(forgetting_probe.LIVE_CHATS)


def _forward(tokens: int, sizes: ModelSizes, device: TargetDevice, launch: float) -> float:
    """Seconds of a pass forward over so many tokens, which reads all weights. `launch`: of a pass
    forward and back, which are three such passes."""
    speed = device.bandwidth or BANDWIDTH[device.on_gpu]
    work = 2.0 * sizes.parameters * tokens / (device.flops * device.reached)
    work = max(work, sizes.weights / speed)
    return side_by_side(work, launch / 3) if device.on_gpu else work + launch / 3


def compiling_pays(plain: RuntimeForecast, compiled: RuntimeForecast) -> bool:
    """Whether compiled layers save a share of the run that is worth their start."""
    return compiled.seconds < (1 - MIN_COMPILE_GAIN) * plain.seconds
