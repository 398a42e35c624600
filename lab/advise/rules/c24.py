"""C24: the goal first, then the cards, then the number of variants.

Full needs 14, LoRA 2.5, QLoRA 0.6 GB a billion parameters. Domain knowledge: full; instruction
following: LoRA. If the cards do not suffice: QLoRA. More than three variants: LoRA, with the
storage sum of C18 as its reason.
"""

from __future__ import annotations

from dataclasses import replace

from lab.advise.case import AdviceCase
from lab.advise.rules import MANY_VARIANTS, Approach, RuleAnswer, gigabytes, register

FULL_GB, LORA_GB, QLORA_GB = 14.0, 2.5, 0.6  # a billion parameters
WANTS_FULL = {"knowledge", "continued pretraining"}
BYTES_A_PARAMETER, ADAPTER_GB = 2.0, 0.2  # of C18's sum: 7B is 14 GB, an adapter about 0.2


@register(
    "C24",
    title="Goal, cards, variants",
    inputs=("goal", "parameters", "model", "gpu_gb", "gpu", "variants"),
    source="Article C, decision function",
)
def judge(case: AdviceCase) -> RuleAnswer:
    room, size = case.memory_gb, case.billions
    full, lora, qlora = FULL_GB * size, LORA_GB * size, QLORA_GB * size
    if case.goal in WANTS_FULL:
        goal = f"{case.goal} calls for full fine-tuning"
        if full <= room:
            return _answer(
                Approach.FULL, f"{goal}, and {gigabytes(full)} fit into {gigabytes(room)}.", "C21"
            )
        quantised = _quantised(
            f"{goal}, but its {gigabytes(full)} do not fit into {gigabytes(room)}", qlora, room
        )
        return replace(quantised, wish=Approach.FULL)
    if case.variants > MANY_VARIANTS:
        copies = case.variants * BYTES_A_PARAMETER * size
        shared = BYTES_A_PARAMETER * size + case.variants * ADAPTER_GB
        return _answer(
            Approach.LORA,
            f"{case.variants:,} variants take {gigabytes(copies)} as copies and about "
            f"{gigabytes(shared)} as one base with adapters.",
        )
    if lora <= room:
        subject = "instruction following" if case.goal == "behaviour" else f"the goal ({case.goal})"
        return _answer(
            Approach.LORA,
            f"{subject} is served by LoRA, and {gigabytes(lora)} fit into {gigabytes(room)}.",
        )
    return _quantised(f"LoRA's {gigabytes(lora)} do not fit into {gigabytes(room)}", qlora, room)


def _quantised(why: str, need: float, room: float) -> RuleAnswer:
    fits = "which fit" if need <= room else f"which does not fit into {gigabytes(room)} either"
    return _answer(Approach.QLORA, f"{why}: QLoRA with {gigabytes(need)}, {fits}.")


def _answer(approach: Approach, reason: str, *claims: str) -> RuleAnswer:
    return RuleAnswer(approach, approach.in_words, reason[0].upper() + reason[1:], claims)
