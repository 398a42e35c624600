"""Claims about money, disk and serving: worked out from the forecast and the claim's own prices."""

from __future__ import annotations

import math
from typing import Any

from lab import gpu_table
from lab.advise.claims import (
    Basis,
    Claim,
    Finding,
    Ruling,
    Sum,
    exactly,
    finds,
    get,
    judged,
    range_of,
)
from lab.advise.claims.memory_rules import A100, GB, MODELS, peak_gb, simulated
from lab.advise.claims.parameter_counts import Q_AND_V, counted
from lab.advise.options import APPROACHES
from lab.advise.rules import Approach
from lab.errors import LabError
from lab.forecasts import MemoryForecast
from lab.formatting import quantity
from lab.runs import index

RANK_16: dict[str, Any] = {"rank": 16, "alpha": 32.0}
OPTIONS: dict[Approach, dict[str, Any]] = {
    Approach.FULL: {},
    Approach.LORA: RANK_16,
    Approach.QLORA: RANK_16,
}
TOKENS = 250  # an example, where a claim does not say; its figures are in proportion to it
HOURS_A_DAY = 24
MB = 1e6


def card_hours(size: str, method: Approach, tokens: float) -> float:
    """Hours of one A100 for so many tokens: of as many cards as it takes to hold the run, without
    what they tell each other. Raises LabError."""
    forecast = simulated(MODELS[size], method.value, device=A100, **OPTIONS[method])
    speed = forecast.speed.tokens_per_s if forecast.speed else None
    if not speed:
        raise LabError("The speed of an A100 is not known.", "")
    return tokens / speed / 3600


@finds("C16")
def training_table(claim: Claim) -> Finding:
    printed = claim.printed
    tokens = printed["examples"] * printed["epochs"] * TOKENS
    price = printed["usd_an_hour"]
    figures, implied = [], []
    for size in ("7B", "13B", "70B"):
        for position, method in enumerate(OPTIONS):
            low, high = range_of(printed[size][position])
            hours = card_hours(size, method, tokens)
            value = hours * price
            figures.append(
                Sum(
                    f"{size} {method.in_words}", low, high, value, "USD",
                    f"{printed['examples']:,} × {printed['epochs']} × {TOKENS} tokens = "
                    f"{hours:,.1f} A100 hours × {price} USD",
                )
            )  # fmt: skip
            implied.append((TOKENS * low / value, TOKENS * high / value))
    shortest, longest = max(low for low, _ in implied), min(high for _, high in implied)
    # one length of examples would have to explain all cells
    ratio = figures[0].value / figures[1].value
    note = (
        f"It names no length. To cost what is printed, an example would have {implied[0][0]:,.0f} "
        f"to {implied[0][1]:,.0f} tokens for 7B full and {implied[1][0]:,.0f} to "
        f"{implied[1][1]:,.0f} for 7B LoRA: the printed prices of the two differ ten times, their "
        f"time {ratio:.1f} times."
    )
    if shortest > longest:
        note = f"No one length of examples explains all nine figures. {note}"
    return judged(figures, Basis.SIMULATED, depends="tokens an example", note=note)


@finds("A6")
def seventy_billion(claim: Claim) -> Finding:
    printed, table = claim.printed, get("C16").printed
    price = table["usd_an_hour"]
    low, high = range_of(printed["qlora_usd"])
    hours = range_of(printed["qlora_hours"])
    cards_low, cards_high = low / price / hours[1], high / price / hours[0]
    tokens = table["examples"] * table["epochs"] * TOKENS
    full, qlora = (card_hours("70B", method, tokens) * price for method in APPROACHES[::2])
    peak = peak_gb(simulated(MODELS["70B"], "full", 1))
    least_cards = math.ceil(peak / (gpu_table.get(A100["gpu"]).usable_bytes / GB))
    least_days = printed["full_usd"][0] / price / HOURS_A_DAY / range_of(printed["full_days"])[1]
    figures = [
        Sum(
            "QLoRA on one A100", low, high, hours[1] * price, "USD",
            f"{hours[1]} hours × C16's {price} USD; the printed price takes {cards_low:.0f} to "
            f"{cards_high:.0f} cards, though A4 says that 35 GB of weights fit on one",
        ),
        Sum("full here", *range_of(printed["full_usd"]), full, "USD",
               f"C16's data at {TOKENS} tokens an example"),
        Sum("QLoRA here", low, high, qlora, "USD",
               f"C16's data at {TOKENS} tokens an example"),
        Sum("QLoRA here", *hours, qlora / price, "hours",
               f"the same on one A100, {qlora:,.1f} USD at {price} USD an hour"),
        Sum("full here", *range_of(printed["full_days"]), full / price / HOURS_A_DAY / least_cards,
               "days", f"the same on {least_cards} A100s, the fewest for {peak:,.0f} GB"),
    ]  # fmt: skip
    note = (
        f"It names no data. {printed['full_usd'][0]:,} USD in {printed['full_days'][1]} days are "
        f"{least_days:,.0f} A100s at {price} USD an hour."
    )
    return judged(figures, Basis.SIMULATED, depends="the data, which it does not name", note=note)


@finds("C17")
def checkpoints(claim: Claim) -> Finding:
    printed = claim.printed
    count, price = printed["checkpoints"], printed["usd_a_gb"]
    forecast = simulated(MODELS["7B"], "full", 1)
    whole = forecast.disk.checkpoint / GB if forecast.disk else 0.0
    figures = [
        exactly("7B", printed["gb_7B"], count * 2 * 7, "GB", f"{count} × 2 B × 7 B"),
        exactly("7B a month", printed["usd_7B"], printed["gb_7B"] * price, "USD",
                f"{printed['gb_7B']} GB × {price} USD"),
        exactly("70B", printed["gb_70B"], count * 2 * 70, "GB", f"{count} × 2 B × 70 B"),
        exactly("70B a month", printed["usd_70B"], printed["gb_70B"] * price, "USD",
                f"{printed['gb_70B']} GB × {price} USD"),
        exactly("LoRA", printed["lora_gb"], count * printed["lora_mb"] / 1000, "GB",
                f"{count} × {printed['lora_mb']} MB"),
        Sum("7B here", printed["gb_7B"], printed["gb_7B"], count * whole, "GB",
               f"{count} × {whole:.1f} GB: a checkpoint from which a run goes on holds the "
               "optimizer's state too"),
    ]  # fmt: skip
    return judged(figures, Basis.SIMULATED, depends="whether a checkpoint can be resumed")


@finds("C18")
def variants(claim: Claim) -> Finding:
    printed = claim.printed
    count = printed["variants"]
    each = adapter_mb() / 1000
    figures = [
        exactly("copies", printed["copies_gb"], count * 2 * 7, "GB", f"{count} × 2 B × 7 B"),
        Sum("one base", printed["shared_gb"], printed["shared_gb"],
               printed["base_gb"] + count * each, "GB",
               f"{printed['base_gb']} + {count} × {1000 * each:.0f} MB (r 16, all linear layers, "
               "16 bits)"),
    ]  # fmt: skip
    return judged(figures, Basis.COMPUTED)


def adapter_mb(rank: int = 16, bytes_a_parameter: int = 2, *, is_narrow: bool = False) -> float:
    """Of a LoRA on a 7B model: on all linear layers, or on q and v."""
    targets = {"target_modules": list(Q_AND_V)} if is_narrow else {}
    memory = counted(MODELS["7B"], "lora", rank=rank, alpha=2.0 * rank, **targets)
    return memory.trainable * bytes_a_parameter / MB


@finds("A7")
def adapter_sizes(claim: Claim) -> Finding:
    low, high = range_of(claim.printed["adapter_mb"])
    narrow, wide = adapter_mb(is_narrow=True), adapter_mb()
    figures = [
        Sum("q and v", low, high, narrow, "MB", "r 16, 16 bits, Mistral-7B"),
        Sum("all linear layers", low, high, wide, "MB", "r 16, 16 bits, Mistral-7B"),
        Sum("all, in float32", *range_of(claim.printed["elsewhere_mb"]), 2 * wide, "MB",
               "r 16, Mistral-7B"),
    ]  # fmt: skip
    value = f"{narrow:,.0f} MB (q and v) to {2 * wide:,.0f} MB (all, float32) at r 16"
    return judged(figures, Basis.COMPUTED, value, depends="rank, targets and type")


@finds("B11")
def comparison_table(claim: Claim) -> Finding:
    printed = claim.printed
    lora = counted(MODELS["7B"], "lora", rank=16, alpha=32.0, target_modules=list(Q_AND_V))
    wide = counted(MODELS["7B"], "lora", rank=16, alpha=32.0)
    adapters = counted(MODELS["7B"], "bottleneck", size=64)
    prefix = counted(MODELS["7B"], "prefix", num_virtual_tokens=20)
    plain_prefix = 2 * 32 * 4096 * 20 * 2 / MB

    def share(memory: MemoryForecast) -> float:
        return 100 * memory.trainable / memory.parameters

    figures = [
        exactly("full", printed["full_percent"], share(counted(MODELS["7B"], "full")), "%",
                "every parameter"),
        Sum("LoRA", printed["lora_percent"], printed["lora_percent"], share(lora), "%",
               f"r 16 on q and v: {lora.trainable:,}"),
        Sum("LoRA on all", printed["lora_percent"], printed["lora_percent"], share(wide), "%",
               f"r 16 on all linear layers: {wide.trainable:,}"),
        Sum("LoRA on all", 0, printed["lora_mb"], 2 * wide.trainable / MB, "MB", "16 bits"),
        Sum("adapters", *range_of(printed["adapters_percent"]), share(adapters), "%",
               f"bottleneck 64: {adapters.trainable:,}"),
        Sum("adapters", *range_of(printed["adapters_mb"]), 2 * adapters.trainable / MB, "MB",
               "16 bits"),
        Sum("prefix", printed["prefix_percent"], printed["prefix_percent"], share(prefix), "%",
               f"20 positions: {prefix.trainable:,}"),
        Sum("prefix", 0, printed["prefix_mb"], plain_prefix, "MB",
               "B8's 5,242,880 parameters at 16 bits: 10 MiB to the byte"),
    ]  # fmt: skip
    return judged(figures, Basis.COMPUTED)


@finds("A14")
def merged(claim: Claim) -> Finding:
    memory = counted(MODELS["7B"], "lora", rank=16, alpha=32.0)
    base = memory.parameters - memory.trainable
    value = f"merged {base:,} parameters, as the base; beside it {memory.parameters:,}"
    note = (
        "W₀ + (α/r) B A has the shape of W₀, so every product stays the same. With the adapter "
        "kept, it can be taken off again up to rounding; the merged weights alone cannot tell."
    )
    return Finding(value, Basis.COMPUTED, Ruling.CONFIRMED, "", (), note)


@finds("C19")
def experiments(claim: Claim) -> Finding:
    low, high = range_of(claim.printed["runs"])
    ended = [entry for entry in index.entries() if entry.status.has_ended]
    exported = [entry for entry in ended if entry.notes or entry.tags]
    value = (
        f"{quantity(len(ended), 'run')} ended in this home, {len(exported)} of them noted or tagged"
    )
    note = f"A habit, not a quantity: the Advisor's costs multiply one run by {low} to {high}."
    return Finding(value, Basis.MEASURED, Ruling.DEPENDS, "on the task and the person", (), note)
