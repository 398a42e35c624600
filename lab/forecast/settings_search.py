"""Choose the fastest settings that fit: rows a pass, checkpointing, loss, optimizer, compilation.

Every choice keeps the rows of an optimizer step, and so the training, as asked; only an optimizer
with smaller state changes its arithmetic, and must be clearly faster to be chosen. Peaks come from
outlines first, and the best ones are confirmed by the shadow step; speeds from
`lab.forecast.runtime_estimate`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from lab import formatting, optimizers
from lab.data.row_sizes import RowSizes
from lab.errors import Problem, SpecError
from lab.forecast.compile_choice import choose_compile
from lab.forecast.finished_runs import with_reached
from lab.forecast.forecaster import refusal, settings_of
from lab.forecast.memory_forecast import TraceOptions, outline_for_any_rows, predict_memory
from lab.forecast.model_profile import loss_kind, profile_model
from lab.forecast.resolve import Resolution
from lab.forecast.runtime_estimate import seconds_per_token, training_volume
from lab.forecast.selective_checkpointing import RESERVE, fewest_layers
from lab.forecast.stored_forecasts import memory_forecast
from lab.forecast.target_device import TargetDevice
from lab.forecasts import (
    Candidate,
    DatasetStats,
    MemoryForecast,
    SettingsSearch,
    rows_in_words,
)
from lab.methods import Method
from lab.spec import RunSpec

CONFIRMED = 6  # choices that are traced
STATELESS_OPTIMIZER = "sgd"  # keeps no state: offered where nothing else fits
OTHER_OPTIMIZER_FACTOR = 0.95  # a different optimizer is ranked at this fraction of its speed


def search_settings(
    resolution: Resolution,
    config: Any,
    device: TargetDevice,
    stats: DatasetStats,
    *,
    packed: bool = False,
    rows: RowSizes | None = None,
) -> SettingsSearch:
    """The settings that fit `device` (which has a size), the fastest first. `stats` of the data say
    whether the run is long enough for compiled layers, which then go with every choice; `rows` are
    the run's own, where they are known. Raises SpecError where a library refuses the method, or
    nothing can be traced."""
    device = with_reached(device)
    try:
        profile = profile_model(config, resolution.spec)
        compiles, why = choose_compile(resolution, profile, device, stats, rows)
        candidates = rank_settings(resolution, config, device, compiles, packed=packed, rows=rows)
        if not candidates:
            options = TraceOptions(device.on_gpu, traced=False)
            trace_error = predict_memory(config, resolution.spec, options).trace_error
            raise SpecError([Problem("model", f"the step cannot be traced ({trace_error}).")])
    except ValueError as error:  # a library refuses the combination in its own words
        raise refusal(resolution, error) from None
    fastest = candidates[0].tokens_per_s
    return SettingsSearch(
        candidates=tuple(candidates),
        reserve=RESERVE,
        reached=device.reached,
        is_measured=device.is_measured,
        compile=why,
        rows=rows_in_words(
            settings_of(resolution.spec, "", TraceOptions(device.on_gpu, packed, rows=rows))
        ),
        energy_wh_per_million_tokens=(
            round(device.watts * 1e6 / fastest / 3600, 2) if device.watts and fastest else None
        ),
        device_bytes=device.memory_bytes or 0,
    )


@dataclass(frozen=True)
class _Search:
    """What stays the same for all candidates. `memory_bytes`: what they may take."""

    config: Any
    spec: RunSpec
    method: Method
    device: TargetDevice
    memory_bytes: int
    compiles: str
    options: TraceOptions

    @property
    def most_rows(self) -> int:
        return max(rows for rows, _ in _splits(self.spec))

    def outlined(self, changed: RunSpec) -> MemoryForecast | None:
        """By outlines, which are traced once for all rows and optimizers; None if they cannot."""
        options = replace(self.options, traced=False)
        asked_rule = _with(changed, optimizer=self.spec.train.optimizer)
        short = outline_for_any_rows(self.config, asked_rule, options, self.most_rows)
        if short is None:
            return None
        return predict_memory(self.config, changed, options, self.memory_bytes, short)

    def speed(self, changed: RunSpec, launches: int) -> float:
        """Tokens a second: of the run's rows, or with rows full of tokens that count."""
        profile, rows = profile_model(self.config, changed), self.options.rows
        volume = None if rows is None else training_volume(changed, DatasetStats(), 1.0, rows)
        return 1 / seconds_per_token(changed, profile, self.device, volume, launches)


def rank_settings(
    resolution: Resolution,
    config: Any,
    device: TargetDevice,
    compiles: str = "off",
    *,
    packed: bool = False,
    rows: RowSizes | None = None,
) -> list[Candidate]:
    """The choices, the best first: those that fit by speed, then the rest by peak. The first says
    why it leads, the others why they do not. What cannot be traced is left out; empty where nothing
    can."""
    spec, method = resolution.spec, resolution.method
    memory_bytes = int((device.memory_bytes or 0) * (1 - RESERVE))
    # on a processor runs are admitted with the outline, which has a margin there
    options = TraceOptions(device.on_gpu, packed, traced=device.on_gpu, rows=rows)
    search = _Search(config, spec, method, device, memory_bytes, compiles, options)
    rules = _rules(spec)
    ranked = _ranked(rules, search)
    if (
        ranked
        and not ranked[0].fits
        and STATELESS_OPTIMIZER not in rules
        and method.saves_whole_model
    ):
        ranked = _ranked([*rules, STATELESS_OPTIMIZER], search)
    return _explained(ranked, memory_bytes) if ranked else []


def _ranked(rules: list[str], search: _Search) -> list[Candidate]:
    """The choices with one of these optimizers, the leading ones traced."""
    spec, method = search.spec, search.method
    ways = ["off", "on"] if method.can_checkpoint_activations else ["off"]
    can_fuse = loss_kind(search.config, _with(spec, loss_implementation="fused")) == "fused"
    losses = ["fused", "plain"] if can_fuse and method.can_fuse_loss else ["plain"]
    choices: list[Candidate] = []
    untraceable: set[tuple[str, str]] = set()
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
                compile=search.compiles,
            )
            predicted = None if (way, loss) in untraceable else search.outlined(changed)
            if predicted is None:  # nobody can say whether it fits
                untraceable.add((way, loss))
                continue
            if way == "on" and predicted.fits and not fits_without:
                changed, predicted = _fewest_by_outline(changed, predicted, search)
            fits_without = bool(predicted.fits)
            choices.append(
                Candidate(
                    batch_size=rows,
                    gradient_accumulation_steps=times,
                    activation_checkpointing=way,
                    loss_implementation=loss,
                    optimizer=rule,
                    compile=search.compiles,
                    peak_bytes=predicted.peak_bytes,
                    tokens_per_s=search.speed(changed, predicted.launches),
                    how=predicted.how,
                    fits=bool(predicted.fits),
                    is_requested_optimizer=rule == spec.train.optimizer,
                    checkpointed_layers=changed.train.checkpointed_layers,
                )
            )
    return _confirm(sorted(choices, key=_rank), search)


def _fewest_by_outline(
    spec: RunSpec, all_layers: MemoryForecast, search: _Search
) -> tuple[RunSpec, MemoryForecast]:
    """`spec`, which recomputes all layers and fits, with the fewest that do: one recomputed layer
    costs next to nothing, so the choice is ranked by what it may be, not by all of them."""
    best = spec, all_layers
    low, high = 0, int(search.config.num_hidden_layers)
    while high - low > 1:
        middle = (low + high) // 2
        some = _with(spec, checkpointed_layers=middle)
        predicted = search.outlined(some)
        if predicted is not None and predicted.fits:
            high, best = middle, (some, predicted)
        else:
            low = middle
    return best


def _rules(spec: RunSpec) -> list[str]:
    """The optimizer that is asked for, and the one with the same rule and less state."""
    rule = spec.train.optimizer
    smaller = {"adamw": "adamw8bit"}.get(rule)
    return [rule, smaller] if smaller is not None else [rule]


def _splits(spec: RunSpec) -> list[tuple[int, int]]:
    """(rows a pass, passes) with the rows of a step as asked."""
    total = spec.train.batch_size * spec.train.gradient_accumulation_steps
    splits = [(rows, total // rows) for rows in range(1, total + 1) if total % rows == 0]
    return splits[-1:] if optimizers.get(spec.train.optimizer).in_backward else splits


def _with(spec: RunSpec, **changes: Any) -> RunSpec:
    return replace(spec, train=replace(spec.train, **changes))


def _rank(choice: Candidate) -> tuple[bool, float, int]:
    """Sorts those that fit by speed, the others by peak."""
    speed = choice.tokens_per_s * (1.0 if choice.is_requested_optimizer else OTHER_OPTIMIZER_FACTOR)
    return (not choice.fits, -speed if choice.fits else 0.0, choice.needed_bytes)


def _confirm(ranked: list[Candidate], search: _Search) -> list[Candidate]:
    """The leading choices with the shadow step's peaks, until one of them fits and none that is
    not traced yet promises more. Where checkpointing helps, of the fewest layers that do."""
    options = search.options
    traced: list[Candidate] = []
    for choice in ranked[:CONFIRMED]:
        changes = {key.split(".")[1]: value for key, value in choice.changes().items()}
        changed = _with(search.spec, **changes | {"checkpointed_layers": None})
        memory = memory_forecast(search.config, changed, options, search.memory_bytes)
        if memory.fits and memory.how.is_exact and choice.activation_checkpointing == "on":
            if not _fits_without(traced, ranked, choice):
                changed, memory = fewest_layers(
                    search.config, changed, memory, options, search.memory_bytes
                )
        traced.append(
            replace(
                choice,
                checkpointed_layers=changed.train.checkpointed_layers,
                tokens_per_s=search.speed(changed, memory.launches),
                peak_bytes=memory.peak_bytes,
                reserved_bytes=memory.reserved_bytes,
                fits=bool(memory.fits),
                how=memory.how,
            )
        )
        rest = ranked[len(traced) :]
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


def _explained(ranked: list[Candidate], memory_bytes: int) -> list[Candidate]:
    best = ranked[0]
    explained = []
    for choice in ranked:
        if not choice.fits:
            over = (choice.needed_bytes - memory_bytes) / 1e9
            why = f"{over:.2f} GB too much"
        elif choice is best:
            why = "fastest that fits"
        else:
            slower = 1 - choice.tokens_per_s / best.tokens_per_s
            saved = (best.peak_bytes - choice.peak_bytes) / 1e9
            why = f"{formatting.percent(slower)} {'slower' if slower > 0 else 'faster'}"
            why = why if abs(slower) >= 0.005 else "same speed"
            why += f", {saved:.2f} GB less" if saved > 0 else f", {-saved:.2f} GB more"
        if not choice.is_requested_optimizer:
            why += f"; {optimizers.get(choice.optimizer).title} instead of the chosen optimizer"
        explained.append(replace(choice, why=why))
    return explained
