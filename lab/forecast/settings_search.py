"""Choose the fastest settings that fit: rows a pass, checkpointing, loss, optimizer, compilation.

Every choice keeps the rows of an optimizer step, and so the training, as asked; only an optimizer
with smaller state changes its arithmetic, and must be clearly faster to be chosen. Peaks come from
outlines first, and the best ones are confirmed by the shadow step; speeds from
`lab.forecast.runtime_estimate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lab import optimizers
from lab.forecast import estimator as memory
from lab.forecast import runtime_estimate, selective_checkpointing
from lab.forecast.runtime_estimate import TargetDevice
from lab.forecast.selective_checkpointing import RESERVE
from lab.forecasts import Candidate, MemoryForecast
from lab.methods import Method
from lab.spec import RunSpec

CONFIRMED = 6  # choices that are traced
SMALLEST = "sgd"  # keeps no state: offered where nothing else fits
OTHER_RULE = 0.95  # a different optimizer is ranked at this fraction of its speed


def choose(
    config: Any,
    spec: RunSpec,
    method: Method,
    device: TargetDevice,
    compiles: str = "off",
    *,
    packed: bool = False,
) -> list[Candidate]:
    """The choices for `spec` (resolved), the best first: those that fit by speed, then the rest by
    peak. The first says why it leads, the others why they do not. What cannot be traced is left
    out; empty where nothing can.

    `compiles`: whether the run is long enough for compiled layers, which then go with every choice.
    """
    room = int((device.memory_bytes or 0) * (1 - RESERVE))
    rules = _rules(spec)
    ranked = _ranked(rules, config, spec, method, device, room, compiles, packed)
    if ranked and not ranked[0].fits and SMALLEST not in rules and method.saves_whole_model:
        rules = [*rules, SMALLEST]
        ranked = _ranked(rules, config, spec, method, device, room, compiles, packed)
    return _explained(ranked, room) if ranked else []


def _ranked(
    rules: list[str],
    config: Any,
    spec: RunSpec,
    method: Method,
    device: TargetDevice,
    room: int,
    compiles: str,
    packed: bool,
) -> list[Candidate]:
    """The choices with one of these optimizers, the leading ones traced."""
    ways = ["off", "on"] if method.can_checkpoint_activations else ["off"]
    can_fuse = memory.loss_kind(config, _with(spec, loss_implementation="fused")) == "fused"
    losses = ["fused", "plain"] if can_fuse and method.can_fuse_loss else ["plain"]
    choices: list[Candidate] = []
    untraceable: set[tuple[str, str]] = set()
    most = max(rows for rows, _ in _splits(spec))

    def outlined(changed: RunSpec) -> MemoryForecast | None:
        """By outlines, which are traced once for all rows and optimizers; None if they cannot."""
        asked_rule = _with(changed, optimizer=spec.train.optimizer)
        short = memory.for_any_rows(
            config, asked_rule, method, most, on_gpu=device.on_gpu, packed=packed
        )
        if short is None:
            return None
        return memory.predict(
            config, changed, method, on_gpu=device.on_gpu, memory_bytes=room, packed=packed,
            shadow=False, short=short,
        ).memory  # fmt: skip

    def speed(changed: RunSpec, launches: int) -> float:
        return _speed(changed, memory.measure(config, changed, method), device, launches)

    for rule, (rows, times), loss in itertools.product(rules, _splits(spec), losses):
        fits_without = False
        for way in ways:
            changed = _with(
                spec,
                optimizer=rule,
                batch_size=rows,
                gradient_accumulation_steps=times,
                activation_checkpointing=way,
                checkpointed_layers=None,
                loss_implementation=loss,
                compile=compiles,
            )
            predicted = None if (way, loss) in untraceable else outlined(changed)
            if predicted is None:  # nobody can say whether it fits
                untraceable.add((way, loss))
                continue
            if way == "on" and predicted.fits and not fits_without:
                changed, predicted = _fewest_by_outline(changed, predicted, outlined, config)
            fits_without = bool(predicted.fits)
            choices.append(
                Candidate(
                    batch_size=rows,
                    gradient_accumulation_steps=times,
                    activation_checkpointing=way,
                    loss_implementation=loss,
                    optimizer=rule,
                    compile=compiles,
                    peak_bytes=predicted.peak_bytes,
                    tokens_per_s=speed(changed, predicted.launches),
                    how=predicted.how,
                    fits=bool(predicted.fits),
                    is_asked_rule=rule == spec.train.optimizer,
                    checkpointed_layers=changed.train.checkpointed_layers,
                )
            )
    return _confirm(sorted(choices, key=_rank), config, spec, method, device, room, packed)


def _fewest_by_outline(
    spec: RunSpec,
    everywhere: MemoryForecast,
    outlined: Callable[[RunSpec], MemoryForecast | None],
    config: Any,
) -> tuple[RunSpec, MemoryForecast]:
    """`spec`, which recomputes all layers and fits, with the fewest that do: one recomputed layer
    costs next to nothing, so the choice is ranked by what it may be, not by all of them."""
    best = spec, everywhere
    low, high = 0, int(config.num_hidden_layers)
    while high - low > 1:
        middle = (low + high) // 2
        some = _with(spec, checkpointed_layers=middle)
        predicted = outlined(some)
        if predicted is not None and predicted.fits:
            high, best = middle, (some, predicted)
        else:
            low = middle
    return best


def _rules(spec: RunSpec) -> list[str]:
    """The optimizer that is asked for, and the one with the same rule and less state."""
    asked = spec.train.optimizer
    smaller = {"adamw": "adamw8bit"}.get(asked)
    return [asked, smaller] if smaller is not None else [asked]


def _splits(spec: RunSpec) -> list[tuple[int, int]]:
    """(rows a pass, passes) with the rows of a step as asked."""
    total = spec.train.batch_size * spec.train.gradient_accumulation_steps
    splits = [(rows, total // rows) for rows in range(1, total + 1) if total % rows == 0]
    return splits[-1:] if optimizers.get(spec.train.optimizer).in_backward else splits


def _with(spec: RunSpec, **changes: Any) -> RunSpec:
    return replace(spec, train=replace(spec.train, **changes))


def _rank(choice: Candidate) -> tuple[bool, float, int]:
    """Sorts those that fit by speed, the others by peak."""
    speed = choice.tokens_per_s * (1.0 if choice.is_asked_rule else OTHER_RULE)
    return (not choice.fits, -speed if choice.fits else 0.0, choice.needed_bytes)


def _speed(spec: RunSpec, sized: memory.Measured, device: TargetDevice, launches: int) -> float:
    """Tokens a second with rows full of tokens that count."""
    costs = sized.costs[spec.train.loss_implementation]
    return 1 / runtime_estimate.seconds_a_token(
        spec, costs, sized.sizes, device, bits=sized.bits, launches=launches
    )


def _confirm(
    ranked: list[Candidate],
    config: Any,
    spec: RunSpec,
    method: Method,
    device: TargetDevice,
    room: int,
    packed: bool,
) -> list[Candidate]:
    """The leading choices with the shadow step's peaks, until one of them fits and none that is
    not traced yet promises more. Where checkpointing helps, of the fewest layers that do."""
    traced: list[Candidate] = []
    for place, choice in enumerate(ranked[:CONFIRMED]):
        changes = {key.split(".")[1]: value for key, value in choice.changes().items()}
        changed = _with(spec, **changes | {"checkpointed_layers": None})
        # on a processor runs are admitted with the outline, which is a bound there
        how: dict[str, Any] = {
            "on_gpu": device.on_gpu, "memory_bytes": room, "shadow": device.on_gpu,
            "packed": packed,
        }  # fmt: skip
        forecast = memory.cached(config, changed, method, **how)
        fits = forecast.memory.fits and forecast.memory.how.is_exact
        if fits and choice.activation_checkpointing == "on":
            if not _fits_without(traced, ranked, choice):
                changed, forecast = selective_checkpointing.fewest(
                    config, changed, method, forecast, **how
                )
        traced.append(
            replace(
                choice,
                checkpointed_layers=changed.train.checkpointed_layers,
                tokens_per_s=_speed(
                    changed,
                    memory.measure(config, changed, method),
                    device,
                    forecast.memory.launches,
                ),
                peak_bytes=forecast.memory.peak_bytes,
                reserved_bytes=forecast.memory.reserved_bytes,
                fits=bool(forecast.memory.fits),
                how=forecast.memory.how,
            )
        )
        rest = ranked[place + 1 :]
        if traced[-1].fits and (not rest or _rank(traced[-1]) <= _rank(rest[0])):
            return sorted([*traced, *rest], key=_rank)
    return sorted([*traced, *ranked[CONFIRMED:]], key=_rank)


def _fits_without(traced: list[Candidate], ranked: list[Candidate], choice: Candidate) -> bool:
    """Whether the same rows, loss and optimizer fit with no layer checkpointed."""
    return any(
        other.fits
        and other.activation_checkpointing == "off"
        and (other.batch_size, other.loss_implementation, other.optimizer)
        == (choice.batch_size, choice.loss_implementation, choice.optimizer)
        for other in [*traced, *ranked[len(traced) :]]
    )


def _explained(ranked: list[Candidate], room: int) -> list[Candidate]:
    best = ranked[0]
    said = []
    for choice in ranked:
        if not choice.fits:
            over = (choice.needed_bytes - room) / 1e9
            why = f"{over:.2f} GB too much"
        elif choice is best:
            why = "fastest that fits"
        else:
            slower = 1 - choice.tokens_per_s / best.tokens_per_s
            saved = (best.peak_bytes - choice.peak_bytes) / 1e9
            why = f"{slower:.0%} slower" if slower >= 0.005 else "same speed"
            why += f", {saved:.2f} GB less" if saved > 0 else f", {-saved:.2f} GB more"
        if not choice.is_asked_rule:
            why += f"; {optimizers.get(choice.optimizer).title} instead of the chosen optimizer"
        said.append(replace(choice, why=why))
    return said
