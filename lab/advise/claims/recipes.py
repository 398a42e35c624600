"""Claims about settings: the lab's defaults, what a recipe takes, and what only runs tell."""

from __future__ import annotations

from lab import methods
from lab.advise.claims import (
    Basis,
    Claim,
    Finding,
    Ruling,
    Sum,
    exactly,
    finds,
    judged,
    range_of,
    spelled,
)
from lab.advise.claims.memory_rules import GB, MODELS, peak_gb, simulated, under
from lab.formatting import rate
from lab.spec_sections import TrainSpec


@finds("A3", "C8")
def learning_rates(claim: Claim) -> Finding:
    rates = {"full": methods.plainest().default_lr, "peft": methods.get(methods.DEFAULT).default_lr}
    figures = [
        Sum(name, *range_of(claim.printed[name]), value, "", "the lab's default")
        for name, value in rates.items()
    ]
    value = f"the lab's defaults: full {rate(rates['full'])}, LoRA {rate(rates['peft'])}"
    note = (
        "Whether another rate is better is found by a race over rates: Race trains a ladder of "
        "them for each method."
    )
    return Finding(
        value, Basis.COMPUTED, Ruling.OPEN, "until a ladder is raced", tuple(figures), note
    )


@finds("B9")
def full_recipe(claim: Claim) -> Finding:
    batch = claim.printed["batch"]
    peak = peak_gb(simulated(MODELS["7B"], "full", batch))
    value = f"{peak:.1f} GB for Mistral-7B ({under(batch)})"
    note = "A recipe fits or does not; whether it is the best one is not claimed."
    return Finding(value, Basis.SIMULATED, Ruling.DEPENDS, "on the card and the model", (), note)


@finds("C9")
def lora_recipe(claim: Claim) -> Finding:
    printed = claim.printed
    forecast = simulated(
        MODELS["7B"], "lora", printed["batch"], printed["tokens"],
        rank=printed["rank"], alpha=float(printed["alpha"]),
    )  # fmt: skip
    defaults = methods.get("lora").config()
    same = defaults.rank == printed["rank"] and defaults.alpha == printed["alpha"]
    value = (
        f"{peak_gb(forecast):.1f} GB for Mistral-7B; "
        f"{'also the lab’s default rank and alpha' if same else 'the lab’s defaults differ'}"
    )
    note = f"{under(printed['batch'], printed['tokens'])}; {forecast.memory.trainable:,} train."
    return Finding(value, Basis.SIMULATED, Ruling.DEPENDS, "on the card and the model", (), note)


@finds("C10")
def alpha_and_rank(claim: Claim) -> Finding:
    defaults = methods.get("lora").config()
    ratio = claim.printed["ratio"]
    scales = {rank: defaults.alpha / rank for rank in (8, 16, 64)}
    figures = [
        exactly("alpha / r of the lab's default", ratio, defaults.alpha / defaults.rank, "",
                f"{defaults.alpha:g} / {defaults.rank}")
    ]  # fmt: skip
    listed = ", ".join(f"r {rank}: {spelled(scale)}" for rank, scale in scales.items())
    value = f"at alpha {defaults.alpha:g} the update is scaled by {listed}"
    return judged(figures, Basis.COMPUTED, value, note="rsLoRA scales by alpha / √r instead.")


@finds("C13")
def kept_checkpoints(claim: Claim) -> Finding:
    train = TrainSpec()
    low, high = range_of(claim.printed["every_percent"])
    forecast = simulated(MODELS["7B"], "full", 1)
    each = forecast.disk.checkpoint / GB if forecast.disk else 0.0
    count = train.keep_best + train.keep_last
    value = f"here the {train.keep_best} best and the {train.keep_last} last, every 20 %"
    note = (
        f"{count} checkpoints of a 7B full run take {count * each:,.0f} GB of disk "
        f"({each:.1f} GB each, with the optimizer's state); saving every {low} to {high} % is what "
        "the lab does unless told otherwise."
    )
    return Finding(value, Basis.SIMULATED, Ruling.DEPENDS, "on the disk", (), note)


@finds("C15")
def sharding(claim: Claim) -> Finding:
    return Finding(
        "–", Basis.NOT_TESTABLE, Ruling.NEEDS, "several GPUs: a run here has one",
        note="The lab trains on one device; what a run takes beyond it is on the Hardware tab.",
    )  # fmt: skip
