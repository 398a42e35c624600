"""Choose the fastest settings that fit: rows a pass, checkpointing, loss, from the same step.

Every choice keeps the rows of an optimizer step, and so the training, as asked. Peaks come from
the closed form first, and the best ones are confirmed by the shadow step; time comes from the
step's floating-point operations, the device's speed, and a share of it that is reached, which is
measured on the finished runs of this machine where there are any.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from lab.memory import estimate as memory
from lab.memory import formula, partly
from lab.memory.partly import RESERVE
from lab.methods import Method
from lab.spec import RunSpec

REACHED = 0.35  # of a GPU's dense bf16 rate by transformers' own layers, until it is measured
LAYER_S = 0.3e-3  # a pass through one layer and back costs this beside the work itself
PLAIN_LOSS = 1.02  # the plain loss moves whole logits through memory
CONFIRMED = 6  # choices that are traced


@dataclass(frozen=True)
class Device:
    """What the settings are chosen for. `reached`: the share of `flops` that runs get here."""

    memory_bytes: int
    flops: float
    on_gpu: bool = True
    reached: float = REACHED
    watts: float | None = None


@dataclass(frozen=True)
class Choice:
    """One way to do the same training, with what it needs and how fast it should be."""

    batch_size: int
    accumulation: int
    activation_checkpointing: str
    loss: str
    peak_bytes: int
    tokens_per_s: float
    source: str
    fits: bool
    why: str = ""
    checkpointed_layers: int | None = None

    def changes(self) -> dict[str, Any]:
        return {
            "train.batch_size": self.batch_size,
            "train.accumulation": self.accumulation,
            "train.activation_checkpointing": self.activation_checkpointing,
            "train.checkpointed_layers": self.checkpointed_layers,
            "train.loss": self.loss,
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"changes": self.changes()}


def choose(config: Any, spec: RunSpec, method: Method, device: Device) -> list[Choice]:
    """The choices for `spec` (resolved), the best first: those that fit by speed, then the rest by
    peak. The first says why it leads, the others why they do not."""
    from lab.memory.shadow.structure import build
    from lab.train import flops

    room = int(device.memory_bytes * (1 - RESERVE))
    ways = ["off", "on"] if method.can_checkpoint_activations else ["off"]
    model, quantised, _ = build(config, _with(spec, activation_checkpointing="off"), method)
    sizes = formula.sizes(model, spec, quantised)
    costs = flops.count(model, memory.loss_kind(config, spec))
    fallback = memory.loss_kind(config, spec)
    losses = ["fused", "plain"] if fallback == spec.train.loss else [fallback]
    choices = []
    for rows, times in _splits(spec):
        for way in ways:
            for loss in losses:
                changed = _with(
                    spec,
                    batch_size=rows,
                    accumulation=times,
                    activation_checkpointing=way,
                    loss=loss,
                )
                found = formula.from_sizes(
                    sizes, changed, on_gpu=device.on_gpu, memory_bytes=room, loss_kind=loss
                )
                choices.append(
                    Choice(
                        rows,
                        times,
                        way,
                        loss,
                        found.peak_bytes,
                        round(_speed(changed, costs, sizes, device), 1),
                        "formula",
                        bool(found.fits),
                    )
                )
    ranked = sorted(choices, key=_rank)
    ranked = _confirm(
        ranked, config, spec, method, device, room, lambda one: _speed(one, costs, sizes, device)
    )
    return _explained(ranked, room)


def _splits(spec: RunSpec) -> list[tuple[int, int]]:
    """(rows a pass, passes) with the rows of a step as asked."""
    total = spec.train.batch_size * spec.train.accumulation
    return [(rows, total // rows) for rows in range(1, total + 1) if total % rows == 0]


def _with(spec: RunSpec, **changes: Any) -> RunSpec:
    return replace(spec, train=replace(spec.train, **changes))


def _rank(choice: Choice) -> tuple[bool, float, int]:
    speed = -choice.tokens_per_s if choice.fits else 0.0
    return (not choice.fits, speed, choice.peak_bytes)


def _speed(spec: RunSpec, costs: Any, sizes: formula.Sizes, device: Device) -> float:
    """Tokens a second with rows full of tokens that count."""
    tokens = spec.train.batch_size * spec.data.max_length
    work = (costs.per_token + costs.per_loss_token) * tokens
    work += costs.per_token_pair * spec.train.batch_size * spec.data.max_length**2
    if spec.train.activation_checkpointing == "on":
        share = (spec.train.checkpointed_layers or sizes.layers) / sizes.layers
        work += 2.0 * share * (sizes.parameters - sizes.vocabulary * sizes.hidden) * tokens
    if spec.train.loss == "plain":
        work *= PLAIN_LOSS
    launch = sizes.layers * LAYER_S if device.on_gpu else 0.0
    seconds = work / (device.flops * device.reached) + launch
    return float(tokens / seconds)


def _confirm(
    ranked: list[Choice],
    config: Any,
    spec: RunSpec,
    method: Method,
    device: Device,
    room: int,
    speed: Callable[[RunSpec], float],
) -> list[Choice]:
    """The leading choices with the shadow step's peaks, until one of them fits and none that is
    not traced yet promises more. Where checkpointing helps, of the fewest layers that do."""
    traced: list[Choice] = []
    for place, choice in enumerate(ranked[:CONFIRMED]):
        changed = _with(
            spec,
            batch_size=choice.batch_size,
            accumulation=choice.accumulation,
            activation_checkpointing=choice.activation_checkpointing,
            loss=choice.loss,
        )
        how: dict[str, Any] = {"on_gpu": device.on_gpu, "memory_bytes": room}
        found = memory.cached(config, changed, method, **how)
        if found.fits and found.source == "shadow" and choice.activation_checkpointing == "on":
            if not _fits_without(traced, ranked, choice):
                changed, found = partly.fewest(config, changed, method, found, **how)
        traced.append(
            replace(
                choice,
                checkpointed_layers=changed.train.checkpointed_layers,
                tokens_per_s=round(speed(changed), 1),
                peak_bytes=found.peak_bytes,
                fits=bool(found.fits),
                source=found.source,
            )
        )
        rest = ranked[place + 1 :]
        if traced[-1].fits and (not rest or _rank(traced[-1]) <= _rank(rest[0])):
            return sorted([*traced, *rest], key=_rank)
    return sorted([*traced, *ranked[CONFIRMED:]], key=_rank)


def _fits_without(traced: list[Choice], ranked: list[Choice], choice: Choice) -> bool:
    """Whether the same rows and loss fit with no layer checkpointed."""
    return any(
        other.fits
        and other.activation_checkpointing == "off"
        and (other.batch_size, other.loss) == (choice.batch_size, choice.loss)
        for other in [*traced, *ranked[len(traced) :]]
    )


def _explained(ranked: list[Choice], room: int) -> list[Choice]:
    best = ranked[0]
    said = []
    for choice in ranked:
        if not choice.fits:
            over = (choice.peak_bytes - room) / 1e9
            why = f"needs {over:.2f} GB more than there is"
        elif choice is best:
            why = "the fastest that fits and leaves the reserve"
        else:
            slower = 1 - choice.tokens_per_s / best.tokens_per_s
            saved = (best.peak_bytes - choice.peak_bytes) / 1e9
            why = f"{slower:.0%} slower" if slower >= 0.005 else "as fast"
            why += f", {saved:.2f} GB less" if saved > 0 else f", {-saved:.2f} GB more"
        said.append(replace(choice, why=why))
    return said


def reached(runs: list[dict[str, Any]], flops: float) -> float:
    """The share of `flops` that this machine's finished runs got: the median of theirs.

    `runs`: summaries with "flops" and "seconds". REACHED where none has run long enough.
    """
    shares = [
        run["flops"] / run["seconds"] / flops
        for run in runs
        if run.get("seconds", 0) > 10 and run.get("flops", 0) > 0
    ]
    return statistics.median(shares) if shares else REACHED
