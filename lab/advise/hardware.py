"""Which cards hold a run, the smallest that does, and what a gigabyte less would change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lab import gpu_table
from lab.advise import options, prices, settings
from lab.advise.case import AdviceCase, card_of, device_of
from lab.advise.options import Option
from lab.advise.recommend import usd
from lab.errors import LabError
from lab.forecasts import Forecast, checkpointed_layers
from lab.formatting import quantity
from lab.gpu_table import Gpu

# B2: up to so many GB, what it names
B2_STEPS = (
    (24, "one RTX 4090"),
    (48, "two RTX 4090 or an A6000"),
    (80, "one A100 80GB"),
    (160, "two A100 80GB"),
)
A100_GB = 80
ONE_GB = 1_000_000_000


@dataclass(frozen=True)
class CardRow:
    """One card and the run: `settings` in words, None where it does not hold it."""

    card: Gpu
    holds: bool
    comfortably: bool
    hours: float | None
    usd: float | None


def b2_step(need_bytes: int) -> str:
    """What B2 says for an estimate of so many bytes."""
    size = need_bytes / 1e9
    for most, cards in B2_STEPS:
        if size <= most:
            return cards
    return f"{math.ceil(size / A100_GB)} A100 80GB"


def cards(option: Option, case: AdviceCase) -> list[CardRow]:
    """Every card of the table, the smallest first. `holds`: with the smallest settings;
    `comfortably`: as the option is set up. A card without bfloat16 trains in float32, for which the
    planner is asked. Raises LabError."""
    if option.forecast is None or option.need_bytes is None:
        return []
    case_card = card_of(case)
    is_bf16 = case_card is None or case_card.has_bf16
    needs = {
        has_bf16: option.need_bytes
        if has_bf16 == is_bf16
        else options.least_need(case, option.approach, has_bf16=has_bf16)
        for has_bf16 in (True, False)
    }
    needed = option.forecast.memory.needed_bytes
    flops = _flops_of(case)
    now = prices.current()
    rows = []
    for gpu in sorted(gpu_table.GPUS, key=lambda gpu: (gpu.label_gb, gpu.year)):
        holds = needs[gpu.has_bf16] <= gpu.usable_bytes
        hours = None
        if holds and flops and option.seconds:
            hours = option.seconds / 3600 * flops / gpu.flops
        price = now.of_card(gpu)
        cost = hours * price.usd if hours is not None and price else None
        is_same = gpu.has_bf16 == is_bf16
        rows.append(CardRow(gpu, holds, is_same and needed <= gpu.usable_bytes, hours, cost))
    return rows


def _flops_of(case: AdviceCase) -> float | None:
    """Of the card that the option's time is computed for; None for this machine's processor."""
    device = device_of(case)
    return gpu_table.get(device["gpu"]).flops if "gpu" in device else None


def smallest(rows: list[CardRow]) -> Gpu | None:
    """The smallest card that holds the run at all; None where none of the table does."""
    return next((row.card for row in rows if row.holds), None)


def one_gigabyte_less(case: AdviceCase, option: Option) -> str:
    """What changes where the run has a gigabyte less than it takes, in words. Raises LabError."""
    if option.forecast is None:
        return ""
    room = option.forecast.memory.needed_bytes - ONE_GB
    if room <= 0:
        return "It takes less than one gigabyte."
    device = device_of(case) | {"memory_bytes": room}
    for rows in settings.ROWS[option.approach.trains_everything]:
        spec = settings.spec_of(case, option.approach, rows)
        try:
            forecast = options.estimate(spec, device)
        except LabError:
            continue
        if forecast.memory.fits is not False:
            return f"With {room / 1e9:,.1f} GB: {_difference(option, spec, forecast)}."
    lighter = "QLoRA" if not option.approach.trains_everything else "LoRA"
    return (
        f"With {room / 1e9:,.1f} GB it does not fit any more, with one row a pass and every layer "
        f"recomputed: {lighter}, a shorter row or a smaller model."
    )


def _difference(option: Option, spec: dict[str, Any], forecast: Forecast) -> str:
    assert option.forecast is not None
    parts = []
    before, after = option.spec["train"]["batch_size"], spec["train"]["batch_size"]
    if before != after:
        parts.append(f"{quantity(after, 'row')} a pass instead of {before}")
    layers = [checkpointed_layers(each.settings) for each in (option.forecast, forecast)]
    if layers[0] != layers[1]:
        parts.append(f"{layers[1]} recomputed instead of {layers[0]}")
    speeds = [each.speed.tokens_per_s if each.speed else None for each in
              (option.forecast, forecast)]  # fmt: skip
    if speeds[0] and speeds[1] and abs(speeds[1] / speeds[0] - 1) >= 0.005:
        parts.append(f"{100 * (speeds[1] / speeds[0] - 1):+.0f} % speed".replace("-", "−"))
    return ", ".join(parts) or "nothing changes"


def cheapest(rows: list[CardRow]) -> str:
    """The card on which the run costs least, in words; "" without prices."""
    priced = [(row.usd, row) for row in rows if row.usd is not None]
    if not priced:
        return ""
    cost, row = min(priced, key=lambda pair: pair[0])
    return f"{row.card.name}: {usd(cost)}"
