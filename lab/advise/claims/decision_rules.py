"""Claims that are decision rules: each is run on cases that show what it does."""

from __future__ import annotations

from lab.advise.case import AdviceCase
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
)
from lab.advise.rules import Approach, all_rule_sets
from lab.advise.rules.b10 import lora_gb, qlora_gb
from lab.advise.rules.d5 import training_saved_usd


def _answer(claim_id: str, case: AdviceCase) -> tuple[Approach, str]:
    rules = next(rules for rules in all_rule_sets() if rules.claim == claim_id)
    answer = rules.answer(case)
    return answer.approach, answer.answer


@finds("A11")
def overrides(claim: Claim) -> Finding:
    case = AdviceCase(
        parameters=7e9, goal="continued pretraining", budget_usd=500.0, examples=200_000,
        gpu_gb=80.0,
    )  # fmt: skip
    without = AdviceCase(
        parameters=7e9, goal="continued pretraining", examples=200_000, gpu_gb=80.0
    )
    with_budget, free = _answer("A11", case)[1], _answer("A11", without)[1]
    value = f"continued pretraining for 500 USD: {with_budget}; without a budget: {free}"
    note = "Two of its overrides apply at once, and it gives no order; they are taken as listed."
    return Finding(value, Basis.COMPUTED, Ruling.DEPENDS, "on the order of its overrides", (), note)


@finds("B10")
def first_that_fits(claim: Claim) -> Finding:
    case = AdviceCase(parameters=7e9, gpu_gb=24.0, complexity="simple", tasks=2)
    approach, answer = _answer("B10", case)
    is_printed = approach is Approach.ADAPTERS
    kind = Ruling.CONFIRMED if is_printed else Ruling.CONTRADICTS
    figures = (
        Sum("LoRA for 7B", 0.0, 24.0, lora_gb(7), "GB", "2.0 × 7 + 2, on a card of 24 GB"),
        Sum("QLoRA for 7B", 0.0, 24.0, qlora_gb(7), "GB", "0.6 × 7 + 2"),
    )
    value = f"7B, 24 GB, simple, several tasks: {answer}"
    example = claim.printed["example"]
    note = f"The article prints {example}: LoRA fits, and the first that applies wins."
    return Finding(value, Basis.COMPUTED, kind, "", figures, note)


@finds("C24")
def goal_first(claim: Claim) -> Finding:
    table = get("C3").printed["7B"]
    figures = [
        exactly(f"7B {name}", table[index], claim.printed[key] * 7, "GB",
                f"{claim.printed[key]} GB × 7, against C3's table in the same article")
        for index, (key, name) in enumerate(
            {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}.items()
        )
    ]  # fmt: skip
    return judged(figures, Basis.COMPUTED)


@finds("D5")
def price_of_an_error(claim: Claim) -> Finding:
    case = AdviceCase(parameters=7e9, examples=50_000, gpu_gb=80.0)
    saved = training_saved_usd(case)
    value = f"it turns at {saved:,.2f} USD for 7B and 50,000 examples of 250 tokens"
    note = "LoRA's operations at 35 % of an A100 and C16's price, times D2's ratio less one."
    return Finding(value, Basis.COMPUTED, Ruling.DEPENDS, "on what two points are worth", (), note)


@finds("A9")
def full_is_needed(claim: Claim) -> Finding:
    case = AdviceCase(parameters=5e8, examples=1000, gpu_gb=24.0)
    answer, other = _answer("A9", case), _answer("A11", case)
    disagree = answer[0].trains_everything != other[0].trains_everything
    value = f"0.5B, 1,000 examples: {answer[1]}; A11 of the same article: {other[1]}"
    kind = Ruling.CONTRADICTS if disagree else Ruling.CONFIRMED
    note = "A9 asks for full under about 1B, A11 for PEFT under 10,000 examples."
    return Finding(value, Basis.COMPUTED, kind, "", (), note)
