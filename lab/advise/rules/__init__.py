"""Published rule sets for the choice of a method: one self-registering file each.

A rule set always answers, with its reason. What it answers may be right or wrong: it is what the
source says, and what the lab recommends is decided in `lab/advise/recommend.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from lab.advise.case import AdviceCase

MANY_VARIANTS = 3  # more are "many": C24 gives the number, A11 only the word


class Approach(StrEnum):
    """What rule sets tell apart."""

    FULL = "full"
    PEFT = "peft"  # LoRA or QLoRA, whichever fits
    LORA = "lora"
    QLORA = "qlora"
    ADAPTERS = "bottleneck"
    NOTHING = "nothing"

    @property
    def in_words(self) -> str:
        return TITLES[self]

    @property
    def trains_everything(self) -> bool:
        return self is Approach.FULL


TITLES = {
    Approach.FULL: "Full fine-tuning",
    Approach.PEFT: "PEFT (LoRA or QLoRA)",
    Approach.LORA: "LoRA",
    Approach.QLORA: "QLoRA",
    Approach.ADAPTERS: "Bottleneck adapters",
    Approach.NOTHING: "None fits",
}


@dataclass(frozen=True)
class RuleAnswer:
    """`answer` in words; `rests_on`: claims about quality that it takes for granted. `wish`: what
    it would say if memory did not matter, where that differs; NOTHING for a rule that speaks of
    memory alone."""

    approach: Approach
    answer: str
    reason: str
    rests_on: tuple[str, ...] = ()
    wish: Approach | None = None

    @property
    def vote(self) -> Approach:
        return self.wish or self.approach

    @staticmethod
    def of(approach: Approach, reason: str, *rests_on: str) -> RuleAnswer:
        """In the approach's own words."""
        return RuleAnswer(approach, approach.in_words, reason, rests_on)


@dataclass(frozen=True)
class RuleSet:
    """`inputs`: the fields of a case that it reads."""

    claim: str
    title: str
    inputs: tuple[str, ...]
    source: str
    judge: Callable[[AdviceCase], RuleAnswer]

    @property
    def name(self) -> str:
        """Its claim, or its title where it is none of the articles'."""
        return self.claim if self.claim[0].isupper() else self.title

    def answer(self, case: AdviceCase) -> RuleAnswer:
        return self.judge(case)


Judge = Callable[[AdviceCase], RuleAnswer]
_rule_sets: dict[str, RuleSet] = {}


def register(
    claim: str, title: str, inputs: tuple[str, ...], source: str
) -> Callable[[Judge], Judge]:
    """Decorator of the function that judges a case. Claims are unique."""

    def add(judge: Judge) -> Judge:
        if claim in _rule_sets:
            raise ValueError(f"two rule sets are named {claim}")
        _rule_sets[claim] = RuleSet(claim, title, inputs, source, judge)
        return judge

    return add


@cache
def all_rule_sets() -> tuple[RuleSet, ...]:
    """In the order of their claims."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return tuple(_rule_sets[claim] for claim in sorted(_rule_sets))


def gigabytes(value: float) -> str:
    return f"{value:,.4g} GB"
