"""A9: the cases in which full fine-tuning is needed, and PEFT in every other."""

from __future__ import annotations

from lab.advise.case import AdviceCase
from lab.advise.rules import Approach, RuleAnswer, register

SMALL_B = 1


@register(
    "A9",
    title="When full is needed",
    inputs=("domain_shift", "goal", "error_price", "parameters", "model"),
    source="Article A, list of cases for full fine-tuning",
)
def judge(case: AdviceCase) -> RuleAnswer:
    reasons = []
    claims = []
    if case.goal == "continued pretraining":
        reasons.append("continued pretraining")
    if case.goal == "new tokens":
        reasons.append("new tokens")
    if case.domain_shift == "far":
        reasons.append("a radical domain shift")
    if case.error_price == "high":
        reasons.append("a flagship where every 0.1 % counts")
    if case.billions < SMALL_B:
        reasons.append(f"a model of {case.size_in_words} (under about {SMALL_B} B)")
        claims.append("A8")
    if reasons:
        return RuleAnswer(
            Approach.FULL,
            Approach.FULL.in_words,
            f"Full fine-tuning is needed for {' and '.join(reasons)}.",
            tuple(claims) if len(reasons) == 1 else (),
        )
    return RuleAnswer(
        Approach.PEFT,
        Approach.PEFT.in_words,
        "None of its cases applies: no radical domain shift, no continued pretraining, no new "
        f"tokens, no flagship, and {case.size_in_words}.",
    )
