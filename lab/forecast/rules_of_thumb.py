"""The rules of thumb of four articles, each as bytes for a model: claims to hold against the step.

The ids are those of the Claims page. N is the number of parameters of the base; a rule that gives
GiB is turned into bytes, since all figures here are bytes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

GB, GIB = 10**9, 2**30
# The kinds of runs that the articles tell apart.
FULL = "full"
ADAPTER = "lora"
QUANTISED = "qlora"
# C3 prints a table for four sizes (billions): full, LoRA, QLoRA in GB.
C3_TABLE = {7: (98, 18, 10), 13: (180, 32, 16), 34: (470, 80, 40), 70: (960, 160, 80)}


@dataclass(frozen=True)
class RuleOfThumb:
    """One claim: which kind of run it speaks of (full, lora, qlora), and its sentence."""

    claim: str
    kind: str
    says: str


RULES = (
    RuleOfThumb(
        "A2", "full", "weights 2N, gradients 2N, moments 8N, activations as large as the model"
    ),
    RuleOfThumb(
        "A4", "lora", "2N frozen, the adapter negligible, activations about as large as full's"
    ),
    RuleOfThumb("A4-qlora", "qlora", "0.5N frozen and the same activations"),
    RuleOfThumb("B1-adamw-bf16", "full", "14 bytes a parameter, in bf16 with AdamW"),
    RuleOfThumb("B1-adamw-fp32", "full", "20 bytes a parameter, in fp32 with AdamW"),
    RuleOfThumb("B1-sgd-bf16", "full", "8 bytes a parameter, in bf16 with SGD"),
    RuleOfThumb("C2", "full", "2N weights, 4N gradients in fp32, 8N Adam"),
    RuleOfThumb("C2-lora", "lora", "2N and 0.9 GB for a 7B model with q and v"),
    RuleOfThumb("C3", "full", "98 GB for 7B, 180 for 13B, 470 for 34B, 960 for 70B"),
    RuleOfThumb("C3-lora", "lora", "18, 32, 80 and 160 GB"),
    RuleOfThumb("C3-qlora", "qlora", "10, 16, 40 and 80 GB"),
    RuleOfThumb("C4", "qlora", "8 to 10 GB for an 8B model; the middle is taken"),
    RuleOfThumb("B10-lora", "lora", "2.0 GB a billion, and 2"),
    RuleOfThumb("B10-qlora", "qlora", "0.6 GB a billion, and 2"),
    RuleOfThumb("C24-full", "full", "14 GB a billion"),
    RuleOfThumb("C24-lora", "lora", "2.5 GB a billion"),
    RuleOfThumb("C24-qlora", "qlora", "0.6 GB a billion"),
    RuleOfThumb("D2", "lora", "a fifth to a tenth of full; a seventh of B1's 14 bytes is taken"),
)
GPT2_RULES = (
    RuleOfThumb("D1", "full", "2.14 GB for GPT-2 at 4 x 128 tokens"),
    RuleOfThumb("D1-lora", "lora", "0.89 GB for GPT-2 at 4 x 128 tokens, r 8"),
)
GPT2_PARAMETERS = 124_439_808


def kind_of(trainable: int, parameters: int, bits: int) -> str:
    """The kind of run that the articles would call it; adapters of every sort count as LoRA."""
    if bits < 16:
        return QUANTISED
    return FULL if trainable > 0.9 * parameters else ADAPTER


def rules(parameters: int, kind: str, base: int | None = None) -> dict[str, int]:
    """{claim id: bytes} of every rule that speaks of this `kind` of run.

    `parameters` with the method's own, `base` those of the base model.
    """
    count = base or parameters
    billions = count / 1e9
    values = {
        "A2": 14 * count,
        "A4": 4 * count,
        "A4-qlora": 2.5 * count,
        "B1-adamw-bf16": 14 * count,
        "B1-adamw-fp32": 20 * count,
        "B1-sgd-bf16": 8 * count,
        "C2": 14 * count,
        "C2-lora": 2 * count + 0.9 * GB * billions / 7,
        "C3": _c3(billions, 0),
        "C3-lora": _c3(billions, 1),
        "C3-qlora": _c3(billions, 2),
        "C4": 9 * GB * billions / 8,
        "B10-lora": (2.0 * billions + 2) * GB,
        "B10-qlora": (0.6 * billions + 2) * GB,
        "C24-full": 14 * GB * billions,
        "C24-lora": 2.5 * GB * billions,
        "C24-qlora": 0.6 * GB * billions,
        "D2": 2 * count,
    }
    claims = {rule.claim: round(values[rule.claim]) for rule in RULES if rule.kind == kind}
    if count == GPT2_PARAMETERS and kind != QUANTISED:
        claims |= {"D1": round(2.14 * GB)} if kind == FULL else {"D1-lora": round(0.89 * GB)}
    return claims


def says(claim: str) -> str:
    return next(rule.says for rule in (*RULES, *GPT2_RULES) if rule.claim == claim)


def _c3(billions: float, column: int) -> float:
    """C3's table between its sizes by a straight line, outside them in proportion."""
    points = [(float(size), float(row[column])) for size, row in C3_TABLE.items()]
    if billions <= points[0][0]:
        return points[0][1] * billions / points[0][0] * GB
    for (low, first), (high, last) in itertools.pairwise(points):
        if billions <= high:
            return (first + (last - first) * (billions - low) / (high - low)) * GB
    return points[-1][1] * billions / points[-1][0] * GB
