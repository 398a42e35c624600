"""The settings that the articles recommend for a method, each with its claim."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lab.advise.case import AdviceCase, model_of
from lab.advise.rules import Approach
from lab.formatting import quantity
from lab.models import shipped_configs

FULL_RATE = 2e-5  # B9, within A3's 1e-5 to 5e-5
TIMES_FULL, TIMES_IN_SHORT_RUNS = 10, 15  # LoRA without regret; both within A3's 1e-4 to 3e-4
FEW_STEPS = 200
EFFECTIVE_BATCH = 16  # B9: 2 × 8, C9: 4 × 4
ROWS = {True: (2, 1), False: (4, 2, 1)}  # rows of a pass to be tried, for full and for PEFT
MAX_LENGTH = 2048  # C9
FULL_EPOCHS, EPOCHS_AGAINST_FORGETTING = 3.0, 2.0  # B9, C14
GENERAL_FRACTION = 0.1  # C14: 5 to 10 %
SIMPLE_EXAMPLES, MANY_EXAMPLES = 10_000, 500_000  # C11
RANKS = {"simple": 8, "standard": 16, "complex": 64}


@dataclass(frozen=True)
class SettingReason:
    """One setting by its dotted key, its value and the claim that it follows."""

    field: str
    value: Any
    claim: str
    why: str


def method_of(approach: Approach, goal: str) -> str:
    """The lab's method for an approach. New tokens need trained embeddings (A12)."""
    if approach is Approach.LORA and goal == "new tokens":
        return "lora_embeddings"
    return Approach.LORA.value if approach is Approach.PEFT else approach.value


def rank_of(case: AdviceCase) -> tuple[int, str]:
    """(rank, why), by C11."""
    if case.complexity == "complex" or case.examples > MANY_EXAMPLES:
        why = "complex" if case.complexity == "complex" else f"over {MANY_EXAMPLES:,} examples"
        return RANKS["complex"], f"{why}: 64 to 128"
    if case.complexity == "simple" and case.examples < SIMPLE_EXAMPLES:
        return RANKS["simple"], f"simple, under {SIMPLE_EXAMPLES:,} examples: 4 to 8"
    return RANKS["standard"], "the standard: 16 to 32"


def epochs_of(case: AdviceCase) -> float:
    return EPOCHS_AGAINST_FORGETTING if case.keeps_general else FULL_EPOCHS


def reasons(case: AdviceCase, approach: Approach) -> list[SettingReason]:
    """Every setting that is not the lab's default, and where it comes from."""
    steps = math.ceil(case.examples / EFFECTIVE_BATCH) * epochs_of(case)
    is_full = approach.trains_everything
    settings = []
    if approach in (Approach.LORA, Approach.QLORA):
        rank, why = rank_of(case)
        settings += [
            SettingReason("method.rank", rank, "C11", why),
            SettingReason("method.alpha", 2.0 * rank, "C10", "twice the rank"),
            SettingReason(
                "method.dropout", 0.05, "C9", "the recipe's dropout on the adapter's input"
            ),
        ]
        if method_of(approach, case.goal) == approach.value:
            why = "all linear layers at a modest rank beat q and v at a high one"
            settings.append(SettingReason("method.target_modules", "all-linear", "C11", why))
    if is_full:
        rate, claim, why = FULL_RATE, "A3", "full: 1e-5 to 5e-5"
    elif steps < FEW_STEPS:
        rate, claim = FULL_RATE * TIMES_IN_SHORT_RUNS, "E1"
        why = f"{TIMES_IN_SHORT_RUNS} times full's in a short run ({quantity(steps, 'step')})"
    else:
        rate, claim, why = FULL_RATE * TIMES_FULL, "A3", "PEFT: 1e-4 to 3e-4, ten times full's"
    # products of floats: 2e-5 * 15 is 0.00030000000000000003
    settings += [
        SettingReason("train.learning_rate", float(f"{rate:.6g}"), claim, why),
        SettingReason("train.lr_scheduler_type", "cosine", "C8", "cosine with 3 % warm-up"),
        SettingReason("train.warmup_ratio", 0.03, "C8", "cosine with 3 % warm-up"),
    ]
    if case.keeps_general:
        settings += [
            SettingReason("train.epochs", 2.0, "C14", "one to two against forgetting"),
            SettingReason(
                "data.general_fraction", GENERAL_FRACTION, "C14", "5 to 10 % general text"
            ),
            SettingReason("train.forgetting_probe", "on", "C14", "test general ability"),
        ]
    else:
        settings.append(SettingReason("train.epochs", FULL_EPOCHS, "B9", "three epochs"))
    recipe = "B9" if is_full else "C9"
    settings.append(
        SettingReason("data.max_length", _length(case), recipe, "as far as the model reads")
    )
    settings.append(
        SettingReason("data.packing", "off", recipe, f"{EFFECTIVE_BATCH} examples a step")
    )
    return settings


def spec_of(case: AdviceCase, approach: Approach, rows: int) -> dict[str, Any]:
    """The spec of a forecast, with `rows` in a pass; `trainable` makes it one that can start."""
    spec: dict[str, Any] = {
        "name": f"{approach.in_words}, {case.goal}",
        "model": model_of(case),
        "method": {"name": method_of(approach, case.goal)},
        "data": {},
        "train": {
            "batch_size": rows,
            "gradient_accumulation_steps": EFFECTIVE_BATCH // rows,
        },
    }
    for setting in reasons(case, approach):
        section, _, name = setting.field.partition(".")
        spec[section][name] = setting.value
    return spec


def trainable(spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` with weights to train: those that a shipped config describes are on the Hub."""
    kind, _, name = str(spec["model"]).partition(":")
    if kind != "config":
        return spec
    return spec | {"model": shipped_configs.get(name).hub_id}


def _length(case: AdviceCase) -> int:
    """C9's 2,048 tokens, or what the model reads if that is less."""
    kind, _, name = model_of(case).partition(":")
    context = shipped_configs.get(name).context if kind == "config" else None
    return min(MAX_LENGTH, context or MAX_LENGTH)
