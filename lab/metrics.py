"""Every key that a record of `metrics.jsonl` may have, with its unit.

A new metric is a line here; `docs/metrics.md` is written from this table, and the telemetry
leaves out what the table does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TRAIN, EVAL, DEVICE, PROBE = KINDS = ("train", "eval", "device", "probe")
TEXT = "text"


@dataclass(frozen=True)
class Metric:
    """One key: the kinds of records that may have it, its unit, and its meaning.

    The unit of a key that holds a word instead of a number is TEXT.
    """

    key: str
    kinds: tuple[str, ...]
    unit: str
    help: str


METRICS = (
    Metric("v", KINDS, "version", "Version of the format."),
    Metric("kind", KINDS, TEXT, "train (one a step), eval, device (one a second) or probe."),
    Metric("attempt", KINDS, "count", "The attempt that wrote the record; a resume adds one."),
    Metric("time", KINDS, "s since 1970", "The clock of the machine when it was written."),
    Metric("step", (TRAIN, EVAL, PROBE), "steps", "Optimizer steps so far, over all attempts."),
    Metric(
        "tokens", (TRAIN, EVAL, PROBE), "tokens", "Tokens that passed through the model so far."
    ),
    Metric("loss_tokens", (TRAIN,), "tokens", "Of these, the tokens that counted in the loss."),
    Metric(
        "seconds",
        (TRAIN, EVAL, DEVICE, PROBE),
        "s",
        "Training so far, without evaluation and saving, over all attempts.",
    ),
    Metric("flops", (TRAIN, EVAL, PROBE), "FLOPs", "Model FLOPs so far, over all attempts."),
    Metric("train/loss", (TRAIN,), "nats per token", "Mean loss of the step over its loss tokens."),
    Metric("train/grad_norm", (TRAIN,), "L2 norm", "Norm of all gradients, before clipping."),
    Metric(
        "train/learning_rate", (TRAIN,), "per step", "Learning rate of the first parameter group."
    ),
    Metric("perf/step_s", (TRAIN,), "s", "What the step took, with the loading of its batches."),
    Metric("perf/tokens_per_s", (TRAIN,), "tokens/s", "Tokens of the step over its time."),
    Metric(
        "perf/mfu",
        (TRAIN,),
        "fraction",
        "Model FLOPs of the step over what the device's peak rate gives in that time.",
    ),
    Metric(
        "memory/peak_bytes",
        (TRAIN,),
        "bytes",
        "Peak so far: the allocator's on a GPU, resident memory on a CPU.",
    ),
    Metric("eval/loss", (EVAL,), "nats per token", "Mean loss over the held-out split."),
    Metric("eval/loss_tokens", (EVAL,), "tokens", "Held-out tokens that counted in the loss."),
    Metric(
        "rank/possible",
        (EVAL,),
        "directions",
        "Rank that the updates of a low-rank method (LoRA and its kin, AdaLoRA) could have: the "
        "median over at most 24 of its layers.",
    ),
    Metric(
        "rank/effective",
        (EVAL,),
        "directions",
        "Effective rank of these updates: exp of the entropy of their singular values, likewise.",
    ),
    Metric(
        "rank/stable",
        (EVAL,),
        "directions",
        "Stable rank: the sum of the squared singular values over the largest of them, likewise.",
    ),
    Metric(
        "rank/condition",
        (EVAL,),
        "ratio",
        "Condition number: the largest singular value over the smallest that is not rounding, "
        "likewise.",
    ),
    Metric("of", (EVAL,), TEXT, '"base": the record is of the base model, before step 1.'),
    Metric("phase", (DEVICE,), TEXT, "What the worker was doing."),
    Metric("cpu/rss_bytes", (DEVICE,), "bytes", "Resident memory of the worker."),
    Metric("cuda/allocated_bytes", (DEVICE,), "bytes", "Tensors on the GPU."),
    Metric("cuda/reserved_bytes", (DEVICE,), "bytes", "Held by PyTorch's caching allocator."),
    Metric("nvml/used_bytes", (DEVICE,), "bytes", "Memory of the card in use, by all processes."),
    Metric("nvml/utilisation", (DEVICE,), "fraction", "Share of time in which a kernel ran."),
    Metric("nvml/power_w", (DEVICE,), "W", "Power of the card."),
    Metric("nvml/temperature_c", (DEVICE,), "°C", "Temperature of the card."),
    Metric(
        "probe/base_loss",
        (PROBE,),
        "nats per token",
        "Loss of the base model on its own answers to general prompts.",
    ),
    Metric("probe/loss", (PROBE,), "nats per token", "Loss of the trained model on these answers."),
    Metric("probe/rise", (PROBE,), "nats per token", "The second less the first."),
    Metric(
        "probe/kl",
        (PROBE,),
        "nats per token",
        "KL divergence of the trained model from the base on them.",
    ),
    Metric(
        "probe/rise_half",
        (PROBE,),
        "nats per token",
        "Half of the 95 % interval of probe/rise, by drawing the chats again.",
    ),
    Metric(
        "probe/kl_half",
        (PROBE,),
        "nats per token",
        "Half of the 95 % interval of probe/kl, likewise.",
    ),
    Metric(
        "probe/chats",
        (PROBE,),
        "chats",
        "How many of the base's answers were measured: a part at each evaluation, all at the end.",
    ),
    Metric(
        "probe/choices",
        (PROBE,),
        "fraction",
        "Centred accuracy on multiple-choice questions of common knowledge: 0 is chance.",
    ),
    Metric("probe/base_choices", (PROBE,), "fraction", "The same of the base model."),
    Metric(
        "probe/ended",
        (PROBE,),
        "fraction",
        "Share of greedy answers to six general prompts that ended by themselves within 40 tokens.",
    ),
    Metric("probe/base_ended", (PROBE,), "fraction", "The same of the base model."),
    Metric("probe/answer_tokens", (PROBE,), "tokens", "Mean length of these answers."),
    Metric("probe/base_answer_tokens", (PROBE,), "tokens", "The same of the base model."),
    Metric("probe/seconds", (PROBE,), "s", "How long all of the probe took this time."),
)
WORDS = frozenset(metric.key for metric in METRICS if metric.unit == TEXT)
KEYS = {kind: {metric.key for metric in METRICS if kind in metric.kinds} for kind in KINDS}


def is_number(value: Any) -> bool:
    """Whether `value` is a number that JSON and a double can hold; a tensor is not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 1 << 1000


def check(kind: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the values that a record of `kind` may have, a problem for each of the others)."""
    valid, problems = {}, []
    for key, value in values.items():
        if key not in KEYS.get(kind, ()):
            problems.append(f"'{key}' of a {kind} record is not in the table of lab/metrics.py")
        elif key in WORDS and not isinstance(value, str):
            problems.append(f"'{key}' is {type(value).__name__} and should be text")
        elif key not in WORDS and not is_number(value):
            problems.append(f"'{key}' is {type(value).__name__} and should be a number")
        else:
            valid[key] = value
    return valid, problems
