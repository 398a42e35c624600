"""A11: size first, then data and distance, and a list of overrides.

Over 10 B parameters: LoRA or QLoRA. Else full for more than 100,000 examples with a large domain
shift, otherwise PEFT. Overrides, in the order of the article: a budget under 1,000 USD, many
tenants (mandatory, so it goes first here), continued pretraining, under 10,000 examples, the
base's abilities must stay. The first that applies decides; others that disagree are named.
"""

from __future__ import annotations

from lab.advise.case import AdviceCase
from lab.advise.rules import MANY_VARIANTS, Approach, RuleAnswer, register
from lab.formatting import quantity

LARGE_B, MANY_EXAMPLES, FEW_EXAMPLES, SMALL_BUDGET_USD = 10, 100_000, 10_000, 1000


@register(
    "A11",
    title="Size, data and overrides",
    inputs=(
        "parameters", "model", "examples", "domain_shift", "budget_usd", "variants", "goal",
        "keeps_general",
    ),
    source="Article A, decision tree with overrides",
)  # fmt: skip
def judge(case: AdviceCase) -> RuleAnswer:
    overrides = _overrides(case)
    if overrides:
        first = overrides[0]
        others = [other for other in overrides[1:] if other.approach is not first.approach]
        also = "".join(f" It also says: {other.reason}" for other in others)
        return RuleAnswer(
            first.approach, first.answer, f"Override: {first.reason}{also}", first.rests_on
        )
    if case.billions > LARGE_B:
        return RuleAnswer.of(Approach.PEFT, f"{case.size_in_words} are over {LARGE_B} B.")
    if case.examples > MANY_EXAMPLES and case.domain_shift == "far":
        return RuleAnswer.of(
            Approach.FULL,
            f"{case.examples:,} examples are over {MANY_EXAMPLES:,}, and the domain is far.",
        )
    why = (
        f"{_examples(case)} not over {MANY_EXAMPLES:,}"
        if case.examples <= MANY_EXAMPLES
        else "the domain is near"
    )
    return RuleAnswer.of(
        Approach.PEFT, f"At most {LARGE_B} B parameters, and {why}: PEFT unless data and "
        "distance are both large.",
    )  # fmt: skip


def _examples(case: AdviceCase) -> str:
    return f"{quantity(case.examples, 'example')} {'is' if case.examples == 1 else 'are'}"


def _overrides(case: AdviceCase) -> list[RuleAnswer]:
    rules = []
    if case.variants > MANY_VARIANTS:
        reason = f"{case.variants:,} variants are many tenants: LoRA, mandatory."
        rules.append(RuleAnswer.of(Approach.LORA, reason))
    if case.budget_usd is not None and case.budget_usd < SMALL_BUDGET_USD:
        reason = f"{case.budget_usd:,.0f} USD are under {SMALL_BUDGET_USD:,}: QLoRA."
        rules.append(RuleAnswer.of(Approach.QLORA, reason))
    if case.goal == "continued pretraining":
        rules.append(RuleAnswer.of(Approach.FULL, "continued pretraining needs full fine-tuning."))
    if case.examples < FEW_EXAMPLES:
        reason = f"{_examples(case)} under {FEW_EXAMPLES:,}: PEFT."
        rules.append(RuleAnswer.of(Approach.PEFT, reason, "A10"))
    if case.keeps_general:
        reason = "the base's abilities must be kept: PEFT."
        rules.append(RuleAnswer.of(Approach.PEFT, reason, "A5"))
    return rules
