"""What a recommendation costs: training, checkpoints, variants, serving, experiments."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lab import gpu_table
from lab.advise import claims, findings, prices, settings
from lab.advise.case import card_of, device_in_words
from lab.advise.prices import Price
from lab.advise.recommend import Recommendation, usd
from lab.advise.rules import Approach
from lab.formatting import duration, quantity, size

HOURS_A_MONTH = 730
EXPERIMENTS = (10, 20)  # C19
CHECKPOINTS = 5  # the three best and the two last, as runs keep them unless told otherwise
SERVING = 1.2  # times its weights that a served model takes, with cache and workspace
SECTION = "costs"  # the topic of the claims that print prices and sizes


@dataclass(frozen=True)
class CostItem:
    """One line of the bill. `usd`: None where no price is known or it is no money."""

    key: str
    title: str
    amount: str
    usd: float | None
    how: str


def bill(advice: Recommendation) -> list[CostItem]:
    """Every line for the recommended approach."""
    return [
        _training(advice),
        _experiments(advice),
        _checkpoints(advice),
        _variants(advice),
        _serving(advice),
    ]


def hour_price(advice: Recommendation) -> tuple[Price | None, str]:
    """(price, what it is of): of the card, or of a kWh on this machine."""
    now = prices.current()
    card = card_of(advice.case)
    if card is None:
        return now.electricity, "a kWh"
    return now.of_card(card), f"an hour of {card.name}"


def _training(advice: Recommendation) -> CostItem:
    option, case = advice.chosen, advice.case
    price, unit = hour_price(advice)
    tokens = case.tokens * settings.epochs_of(case)
    time = duration(option.seconds)
    how = f"{tokens:,.0f} tokens ({case.examples:,} × {case.tokens_per_example} × "
    how += f"{quantity(settings.epochs_of(case), 'epoch')}) in {time} on {device_in_words(case)}"
    if price is None:
        return CostItem(
            "training", "One training run", time, None, f"{how}; no price {unit} is set"
        )
    how += f"; {price.usd:g} USD {unit} ({price.date})"
    if option.usd is None:
        return CostItem(
            "training", "One training run", time, None, f"{how}; its power is not known"
        )
    return CostItem("training", "One training run", f"{usd(option.usd)}, {time}", option.usd, how)


def _experiments(advice: Recommendation) -> CostItem:
    each = advice.chosen.usd
    low, high = EXPERIMENTS
    how = f"claim C19: plan {low} to {high} runs before one that is kept"
    seconds = advice.chosen.seconds
    time = f"{duration(seconds and low * seconds)} to {duration(seconds and high * seconds)}"
    if each is None:
        return CostItem("experiments", f"{low} to {high} runs", time, None, how)
    amount = f"{usd(low * each)} to {usd(high * each)}, {time}"
    return CostItem("experiments", f"{low} to {high} runs", amount, high * each, how)


def _checkpoints(advice: Recommendation) -> CostItem:
    disk = advice.chosen.forecast.disk if advice.chosen.forecast else None
    if disk is None:
        return CostItem("checkpoints", "Checkpoints", "–", None, "no forecast")
    total = CHECKPOINTS * disk.checkpoint
    month = total / 1e9 * prices.current().storage.usd
    how = f"{CHECKPOINTS} × {size(disk.checkpoint)} with the optimizer's state; {_storage()}"
    return CostItem(
        "checkpoints", "Checkpoints", f"{size(total)}, {usd(month)} a month", month, how
    )


def _storage() -> str:
    price = prices.current().storage
    return f"{price.usd:g} USD per GB and month ({price.date})"


def _variants(advice: Recommendation) -> CostItem:
    """As copies of the whole model, and as adapters beside one base."""
    count = advice.case.variants
    base = 2 * (advice.case.parameters or 0.0)
    each = _artifact(advice)
    copies = count * base
    if advice.approach is Approach.FULL:
        total, how = copies, f"{count:,} × {size(base)} of whole models"
    else:
        total = base + count * each
        how = f"{size(base)} of the base and {count:,} × {size(each)}; copies: {size(copies)}"
    month = total / 1e9 * prices.current().storage.usd
    title = f"{quantity(count, 'variant')} on disk"
    return CostItem(
        "variants", title, f"{size(total)}, {usd(month)} a month", month, f"{how}; {_storage()}"
    )


def _artifact(advice: Recommendation) -> float:
    disk = advice.chosen.forecast.disk if advice.chosen.forecast else None
    return float(disk.artifact) if disk else 0.0


def _serving(advice: Recommendation) -> CostItem:
    """One base in memory with all adapters, or one copy for each variant."""
    count = advice.case.variants
    base = 2 * (advice.case.parameters or 0.0)
    is_shared = advice.approach is not Approach.FULL
    need = SERVING * (base + count * _artifact(advice) if is_shared else count * base)
    now = prices.current()
    holding = gpu_table.holding(int(need))
    priced = [(price.usd, gpu) for gpu in holding if (price := now.of_card(gpu))]
    card = min(priced, key=lambda pair: pair[0])[1] if priced else next(iter(holding), None)
    served = "one base with its adapters" if is_shared else quantity(count, "whole model")
    how = f"{served} in 16 bits, times {SERVING:g} for cache and workspace"
    if card is None:
        return CostItem("serving", "Serving", f"{size(need)} of GPU memory", None,
                        f"{how}; more than one card holds")  # fmt: skip
    price = now.of_card(card)
    if price is None:
        how += f"; no price an hour of {card.name} is set"
        return CostItem("serving", "Serving", f"{size(need)} on a {card.name}", None, how)
    month = price.usd * HOURS_A_MONTH
    amount = f"{usd(month)} a month on a {card.name}"
    how += f": {size(need)}; {price.usd:g} USD an hour ({price.date}), always on"
    return CostItem("serving", "Serving", amount, month, how)


@dataclass(frozen=True)
class PrintedFigure:
    """A printed figure of money, disk or serving beside the lab's."""

    claim: str
    title: str
    printed: str
    here: str
    unit: str
    off_by: str
    formula: str


def printed_figures() -> list[PrintedFigure]:
    """Every figure that the articles print of costs, computed again: asks the planner."""
    rows = []
    for claim in claims.all_claims():
        if claim.topic != SECTION:
            continue
        for figure in findings.find(claim.id).figures:
            off = "" if figure.is_within else claims.percent(figure.off_by)
            rows.append(
                PrintedFigure(
                    claim.id, figure.title, figure.printed, figure.here, figure.unit, off,
                    figure.formula,
                )
            )  # fmt: skip
    return rows


def to_json(items: list[CostItem], printed: list[PrintedFigure]) -> dict[str, Any]:
    return {
        "prices": prices.current().to_json(),
        "costs": [asdict(item) for item in items],
        "printed": [asdict(row) for row in printed],
    }


def price_dates() -> str:
    """ "2026-03-01 to 2026-11-26"."""
    now = prices.current()
    dates = sorted(price.date for price in (*now.cards.values(), now.electricity, now.storage))
    return f"{dates[0]} to {dates[-1]}" if dates else ""
