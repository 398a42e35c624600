"""Prices with their dates and sources: shipped ones, and what a person has set instead."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from lab import gpu_table, paths
from lab.atomic_files import finite_number, part, read_object, write_json
from lab.dataclass_json import read
from lab.errors import Problem, SpecError
from lab.gpu_table import Gpu
from lab.paths import ASSETS
from lab.schema import quote

MAX_USD_PER_HOUR = 1e6


@dataclass(frozen=True)
class Price:
    """`date`: ISO; `source`: who asks it."""

    usd: float = 0.0
    date: str = ""
    source: str = ""


@dataclass(frozen=True)
class Prices:
    """`cards`: an hour of a card, by its name in the GPU table; `electricity`: a kWh; `storage`: a
    GB (10⁹ bytes) a month."""

    cards: Mapping[str, Price] = field(default_factory=dict)
    electricity: Price = Price()
    storage: Price = Price()

    def of_card(self, card: Gpu) -> Price | None:
        """None where nobody has set one."""
        return self.cards.get(card.name)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def file() -> Path:
    """Where a person's own prices lie."""
    return paths.home() / "prices.json"


def version() -> int:
    """Another number as soon as a price of this home has changed; 0 without any."""
    try:
        return file().stat().st_mtime_ns
    except OSError:
        return 0


@cache
def shipped() -> Prices:
    return read(Prices, read_object(ASSETS / "prices.json")) or Prices()


def current() -> Prices:
    """The shipped prices with those of this home over them."""
    prices, home_prices = shipped(), read_object(file()) or {}
    cards = dict(prices.cards)
    for name, stored in part(home_prices, "cards").items():
        price = _price(stored)
        if price is not None and any(gpu.name == name for gpu in gpu_table.GPUS):
            cards[name] = price
    return replace(
        prices,
        cards=cards,
        electricity=_price(home_prices.get("electricity")) or prices.electricity,
        storage=_price(home_prices.get("storage")) or prices.storage,
    )


def _price(stored: Any) -> Price | None:
    damaged: list[str] = []
    price = read(Price, stored, damaged)
    usd = finite_number(part({"price": stored}, "price").get("usd"))
    is_whole = not damaged and usd is not None and 0 <= usd <= MAX_USD_PER_HOUR
    return price if is_whole else None


def keep(name: str, usd: float, date: str) -> None:
    """Set one price of this home: "electricity", "storage" or a card's name, as of an ISO date.
    Raises SpecError."""
    is_card = any(gpu.name == name for gpu in gpu_table.GPUS)
    problems = []
    if not is_card and name not in ("electricity", "storage"):
        problems.append(Problem("price", f"there is no price of '{quote(name)}'."))
    if not math.isfinite(usd) or not 0 <= usd <= MAX_USD_PER_HOUR:
        problems.append(Problem(name, f"is {usd:g} USD; give 0 to {MAX_USD_PER_HOUR:,.0f}."))
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        problems.append(Problem("date", f"is '{quote(date)}'; give one such as 2026-11-26."))
    if problems:
        raise SpecError(problems, "The price was not kept", "the price")
    stored = read_object(file()) or {"v": 1}
    price = asdict(Price(usd, date, "set on this machine"))
    if is_card:
        stored["cards"] = part(stored, "cards") | {name: price}
    else:
        stored[name] = price
    paths.make_folder(file().parent)
    write_json(file(), stored)
