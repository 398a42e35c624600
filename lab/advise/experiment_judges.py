"""What the two runs of an experiment say of a claim: one function a claim, in Finding's terms.

One seed each, so that a difference below EQUAL is none. Each raises LabError where a run lacks what
is compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lab.advise.claims import Basis, Claim, Finding, Ruling, Sum, judged, percent, range_of
from lab.atomic_files import finite_number
from lab.errors import LabError
from lab.formatting import quantity
from lab.paths import RunDir
from lab.rank.spectrum import ENERGY, energy_kept, low_rank_svd
from lab.runs import record_reader
from lab.runs.metric_series import series_of

EQUAL = 0.005  # nats a token: less is no difference with one seed
EARLY_STEP = 30


def _final_loss(run: RunDir) -> float:
    return _number(series_of(run).evaluation.last("eval/loss"), run, "evaluation loss")


def _number(value: Any, run: RunDir, name: str) -> float:
    """Raises LabError where a run lacks the figure."""
    known = finite_number(value)
    if known is None:
        raise LabError(f"{run.id} has no {name}.", "Run the experiment again.")
    return float(known)


def _per_token(run: RunDir) -> float:
    train = series_of(run).train
    seconds = _number(train.last("seconds"), run, "training time")
    return seconds / max(_number(train.last("tokens"), run, "number of tokens"), 1.0)


def _peak(run: RunDir) -> float:
    return _number(series_of(run).train.last("memory/peak_bytes"), run, "peak memory")


def early_and_late(claim: Claim, full: RunDir, lora: RunDir) -> Finding:
    """D4: who leads at step 30, and who at the end."""
    losses: dict[str, list[float]] = {}
    for name, run in (("full", full), ("lora", lora)):
        columns = series_of(run).evaluation
        steps, values = columns.get("step"), columns.get("eval/loss")
        early = [float(v) for step, v in zip(steps, values, strict=True) if step >= EARLY_STEP]
        if len(early) < 2:
            raise LabError(f"{run.id} was not evaluated twice.", "Run the experiment again.")
        losses[name] = [early[0], early[-1]]
    leads = [full_loss - lora_loss for full_loss, lora_loss in zip(*losses.values(), strict=True)]
    last = int(series_of(full).evaluation.last("step") or 0)
    value = (
        f"step {EARLY_STEP}: full {losses['full'][0]:.3f}, LoRA {losses['lora'][0]:.3f}; step "
        f"{last}: full {losses['full'][1]:.3f}, LoRA {losses['lora'][1]:.3f}"
    )
    if leads[0] > EQUAL and leads[1] < -EQUAL:
        return _seen(value, Ruling.CONFIRMED, "with one seed")
    if abs(leads[0]) <= EQUAL or abs(leads[1]) <= EQUAL:
        return _seen(value, Ruling.OPEN, "no difference shown")
    return _seen(value, Ruling.OFF, "with one seed: the same one leads at both")


def within_percents(claim: Claim, full: RunDir, lora: RunDir) -> Finding:
    """B12, of the evaluation loss in place of a benchmark."""
    most = range_of(claim.printed["percent"])[1]
    losses = _final_loss(full), _final_loss(lora)
    difference = losses[1] / losses[0] - 1
    value = f"LoRA {losses[1]:.3f}, full {losses[0]:.3f} ({percent(difference)})"
    kind = Ruling.CONFIRMED if 100 * difference <= most else Ruling.OFF
    return _seen(value, kind, "of the evaluation loss, with one seed")


def few_examples(claim: Claim, full: RunDir, lora: RunDir) -> Finding:
    """A10: whether PEFT beats full on few examples."""
    losses = _final_loss(full), _final_loss(lora)
    value = f"LoRA {losses[1]:.3f}, full {losses[0]:.3f} on held-out chats"
    return _which_is_lower(value, expected=losses[1], other=losses[0])


def forgetting(claim: Claim, full: RunDir, lora: RunDir) -> Finding:
    """A5, C20: how much the loss on the base's own general answers has risen."""
    rises = [_rise(full), _rise(lora)]
    value = f"general answers: full {rises[0]:+.3f}, LoRA {rises[1]:+.3f} nats per token"
    value = value.replace("-", "−")
    return _which_is_lower(value, expected=rises[1], other=rises[0])


def _rise(run: RunDir) -> float:
    records = record_reader.metrics(run, "probe")
    return _number(records[-1].get("probe/rise") if records else None, run, "forgetting probe")


def slower(claim: Claim, off: RunDir, on: RunDir) -> Finding:
    """C5, measured: time a token with and without recomputing."""
    low, high = range_of(claim.printed["slower"])
    value = 100 * (_per_token(on) / _per_token(off) - 1)
    figure = Sum("slower", low, high, value, "%", "seconds a token, on over off")
    return judged([figure], Basis.MEASURED)


def ratio_of_full(claim: Claim, full: RunDir, lora: RunDir) -> Finding:
    """D1's ratio: memory and time of full over LoRA's."""
    printed = claim.printed["times"]
    figures = [
        Sum("memory, times", printed, printed, _peak(full) / _peak(lora), "",
               "peak memory of the two runs"),
        Sum("time, times", printed, printed, _per_token(full) / _per_token(lora), "",
               "seconds a token of the two runs"),
    ]  # fmt: skip
    return judged(figures, Basis.MEASURED)


def _which_is_lower(value: str, *, expected: float, other: float) -> Finding:
    """Whether the one of two losses that the claim expects to be lower is."""
    if abs(expected - other) <= EQUAL:
        return _seen(value, Ruling.OPEN, "no difference shown")
    kind = Ruling.CONFIRMED if expected < other else Ruling.OFF
    return _seen(value, kind, "with one seed")


def _seen(value: str, verdict: Ruling, detail: str) -> Finding:
    return Finding(value, Basis.MEASURED, verdict, detail)


def targets(claim: Claim, everywhere: RunDir, narrow: RunDir) -> Finding:
    """C11: a modest rank on all linear layers against a high one on q and v."""
    losses = _final_loss(everywhere), _final_loss(narrow)
    value = f"rank 8 on all linear layers {losses[0]:.3f}, rank 64 on q and v {losses[1]:.3f}"
    return _which_is_lower(value, expected=losses[0], other=losses[1])


def spectra(claim: Claim, low: RunDir, high: RunDir) -> Finding:
    """C12: the spectrum of the run with the high rank says whether the low one is enough, and the
    two losses say whether that is true."""
    needed, rank = _needed_rank(high)
    enough = _needed_rank(low)[1]
    losses = _final_loss(low), _final_loss(high)
    value = (
        f"{needed} of {quantity(rank, 'singular value')} hold {ENERGY:.0%} of the update; "
        f"rank {enough} ends "
        f"at {losses[0]:.3f}, rank {rank} at {losses[1]:.3f}"
    )
    is_as_good = losses[0] - losses[1] <= EQUAL
    kind = Ruling.CONFIRMED if is_as_good == (needed <= enough) else Ruling.OFF
    return _seen(value, kind, "with one seed")


def _needed_rank(run: RunDir) -> tuple[int, int]:
    """(singular values of each update B A that hold 95 % of the energy, the rank)."""
    from safetensors.numpy import load_file

    file = run.artifact / "adapter_model.safetensors"
    if not file.is_file():
        raise LabError(f"{run.id} has no adapter.", "Run the experiment again.")
    tensors = load_file(file)
    values = [
        low_rank_svd(tensors[name.replace(".lora_A.", ".lora_B.")], a_RI)[1]
        for name, a_RI in tensors.items()
        if ".lora_A." in name
    ]
    rank = max(len(each) for each in values)
    shares = energy_kept(values, rank)
    return int(np.searchsorted(shares, ENERGY * (1 - 1e-12))) + 1, rank
