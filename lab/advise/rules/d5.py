"""D5: model size, how special the task is, and which constraint is hard; above all, the price of an
error.

If two points of accuracy cost less than the training that LoRA saves: LoRA. If an error costs far
more (legal, medical): full. Models under 3 B tolerate full fine-tuning. The training saved is
computed with the article's own ratio, D2: full takes 3 to 4 times as long.
"""

from __future__ import annotations

from lab.advise.case import AdviceCase
from lab.advise.rules import Approach, RuleAnswer, register

SMALL_B = 3
TIMES_LONGER = 3.5  # D2: 3 to 4
# LoRA by its operations: 4 FLOPs a parameter and token, at C16's price of an A100
FLOPS_A_TOKEN, A100_FLOPS, REACHED, USD_AN_HOUR = 4.0, 312e12, 0.35, 3.0
EPOCHS = 3
SPECIAL = {"knowledge", "continued pretraining", "new tokens"}


def training_saved_usd(case: AdviceCase) -> float:
    """What LoRA saves of full fine-tuning: its own cost by its operations, times D2's ratio less
    one."""
    flops = FLOPS_A_TOKEN * case.billions * 1e9 * case.tokens * EPOCHS
    lora = flops / (A100_FLOPS * REACHED) / 3600 * USD_AN_HOUR
    return lora * (TIMES_LONGER - 1)


@register(
    "D5",
    title="Price the error",
    inputs=(
        "parameters", "model", "goal", "domain_shift", "budget_usd", "error_price", "examples",
        "tokens_per_example",
    ),
    source="Article D, three factors",
)  # fmt: skip
def judge(case: AdviceCase) -> RuleAnswer:
    price = case.error_price
    if isinstance(price, (int, float)):
        saved = training_saved_usd(case)
        if price < saved:
            return RuleAnswer.of(
                Approach.LORA,
                f"Two points of accuracy are worth {price:,.2f} USD, less than the training that "
                f"LoRA saves ({saved:,.2f} USD).",
            )
        return RuleAnswer.of(
            Approach.FULL,
            f"Two points of accuracy are worth {price:,.2f} USD, more than the training that LoRA "
            f"saves ({saved:,.2f} USD).",
        )
    if price == "high":
        return RuleAnswer.of(
            Approach.FULL, "An error costs far more than the training (legal, medical)."
        )
    if price == "low":
        return RuleAnswer.of(Approach.LORA, "Errors are cheap: the training saved is worth more.")
    if case.budget_usd is not None:
        return RuleAnswer.of(
            Approach.LORA, f"Cost is the hard constraint ({case.budget_usd:,.0f} USD)."
        )
    is_special = case.goal in SPECIAL or case.domain_shift == "far"
    if is_special and case.billions < SMALL_B:
        return RuleAnswer.of(
            Approach.FULL,
            f"The task is special, and {case.size_in_words} (under {SMALL_B} B) "
            "tolerate full fine-tuning.",
        )
    why = (
        f"the task is special, but {case.size_in_words} are not under {SMALL_B} B"
        if is_special
        else "the task is not special"
    )
    return RuleAnswer.of(Approach.LORA, f"No price of an error is given, and {why}.")
