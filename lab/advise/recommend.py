"""The lab's own recommendation: published rules, this lab's forecast and its own evidence.

The rule sets vote: full or PEFT. Memory has no vote, since the lab forecasts it: what counts of a
rule set is what it would say if everything fitted. A vote that rests on a claim which the lab's
evidence contradicts does not count either. PEFT is settled by what no vote can change: many
variants on one base, general ability that has to stay. Then the forecast decides: what does not fit
or costs more than the budget is out, LoRA goes before QLoRA. What would change the answer is
searched for, one input at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lab import gpu_table
from lab.advise import options as forecasts
from lab.advise import settings, would_change
from lab.advise.case import AdviceCase, device_in_words, model_of, parameters_of
from lab.advise.claims import get as get_claim
from lab.advise.options import Option
from lab.advise.rules import MANY_VARIANTS, Approach, RuleAnswer, RuleSet, all_rule_sets
from lab.advise.would_change import Advised, Change
from lab.compare import evidence
from lab.compare.evidence import Evidence
from lab.formatting import duration, quantity

Options = Mapping[Approach, Option]
# What each goal depends on, so that evidence about it is shown
CLAIMS_OF_GOAL = {
    "behaviour": ("C21", "A10", "B12"),
    "knowledge": ("C21", "C22"),
    "narrow task": ("C21", "A10", "B12"),
    "new tokens": ("A12", "B12"),
    "continued pretraining": ("C22", "B12"),
}
SIMILAR = 10.0  # times the parameters
MAX_RUN_S = 3 * 86_400.0  # of one run; a longer one is told
KEEPING = "A5"
CLAIMS_OF_KEEPING = (KEEPING, "C20", "C14")


@dataclass(frozen=True)
class Vote:
    """A rule set's answer; `refuted_by`: the claim it rests on that evidence contradicts."""

    rules: RuleSet
    answer: RuleAnswer
    refuted_by: str = ""


@dataclass(frozen=True)
class Reason:
    """One sentence, and the rule set, claim or forecast that it comes from."""

    text: str
    source: str


@dataclass(frozen=True)
class Recommendation:
    """`rival`: the best of what was not chosen, None where nothing else fits."""

    case: AdviceCase
    approach: Approach
    votes: tuple[Vote, ...]
    reasons: tuple[Reason, ...]
    options: Options
    changes: tuple[Change, ...] = ()
    rival: Approach | None = None

    @property
    def chosen(self) -> Option:
        return self.options[self.approach]

    @property
    def ruled_out(self) -> list[str]:
        """Why each of the others can be no rival, with the smallest card that would hold it;
        nothing for one that could."""
        return [
            _out_in_words(option)
            for approach, option in self.options.items()
            if approach is not self.approach and option.fits is False
        ]

    @property
    def method(self) -> str:
        return settings.method_of(self.approach, self.case.goal)

    @property
    def would_change(self) -> str:
        if not self.changes:
            return "No single input that was tried turns the answer."
        return "; ".join(change.text for change in self.changes[:3])

    def to_json(self) -> dict[str, Any]:
        return {
            "rules": [
                {
                    "claim": vote.rules.claim,
                    "answer": vote.answer.answer,
                    "reason": vote.answer.reason,
                }
                for vote in self.votes
            ],
            "recommendation": {
                "method": self.method,
                "settings": settings.trainable(self.chosen.spec),
                "fits": self.chosen.fits,
                "reason": " ".join(reason.text for reason in self.reasons),
                "would_change": self.would_change,
            },
        }


def refuted_claims(case: AdviceCase) -> frozenset[str]:
    """Claims that the lab's evidence contradicts, of a base within SIMILAR times the case's size:
    what a small model shows says little of a large one."""
    return frozenset(
        claim
        for each in evidence.all_evidence()
        if is_similar(each, case)
        for claim, verdict in each.verdicts.items()
        if verdict.verdict == "off"
    )


def is_similar(each: Evidence, case: AdviceCase) -> bool:
    size, parameters = parameters_of(each.base), case.parameters
    return bool(size and parameters) and max(size / parameters, parameters / size) <= SIMILAR  # type: ignore[operator]


def votes_on(case: AdviceCase, refuted: frozenset[str]) -> tuple[Vote, ...]:
    """Every rule set's answer. `case` is sized."""
    votes = []
    for rules in all_rule_sets():
        answer = rules.answer(case)
        votes.append(Vote(rules, answer, next((c for c in answer.rests_on if c in refuted), "")))
    return tuple(votes)


def recommend(case: AdviceCase) -> Recommendation:
    """The recommendation for a sized case: asks the planner. Raises LabError where it cannot be
    asked."""
    return with_other_sizes(decide(case, forecast_all(case)))


def forecast_all(case: AdviceCase) -> Options:
    return {each: forecasts.forecast_option(case, each) for each in forecasts.APPROACHES}


def with_other_sizes(advice: Recommendation) -> Recommendation:
    """With the nearest size of a model that turns it: asks the planner for each that is tried."""
    refuted = refuted_claims(advice.case)

    def answer(other: AdviceCase) -> Advised | None:
        options = _ForecastWhenAsked(other)
        approach = _decide(other, votes_on(other, refuted), options, refuted)[0]
        if any(each.refused and not advice.options[name].refused for name, each in options.items()):
            return None
        return Advised(approach, options[approach].fits is not False)

    now = Advised(advice.approach, advice.chosen.fits is not False)
    changes = [*advice.changes, *would_change.of_size(advice.case, now, answer)]
    return replace(advice, changes=tuple(sorted(changes, key=lambda change: change.distance)))


class _ForecastWhenAsked(dict[Approach, Option]):
    """The options of a case, each forecast at the first look: a decision needs one or two."""

    def __init__(self, case: AdviceCase) -> None:
        super().__init__()
        self.case = case

    def __missing__(self, approach: Approach) -> Option:
        self[approach] = forecasts.forecast_option(self.case, approach)
        return self[approach]


def decide(case: AdviceCase, options: Options) -> Recommendation:
    """The recommendation where the forecasts are known, with what would change it."""
    refuted = refuted_claims(case)
    votes = votes_on(case, refuted)
    approach, reasons = _decide(case, votes, options, refuted)
    rivals = [
        other
        for other in (Approach.LORA, Approach.FULL, Approach.QLORA)
        if other is not approach and options[other].fits is not False
    ]

    def answer(other: AdviceCase) -> Advised:
        moved = {name: forecasts.at_size(each, case, other) for name, each in options.items()}
        turned = _decide(other, votes_on(other, refuted), moved, refuted)[0]
        return Advised(turned, moved[turned].fits is not False)

    return Recommendation(
        case,
        approach,
        votes,
        (*reasons, *_from_evidence(case)),
        options,
        tuple(
            would_change.changes(
                case, Advised(approach, options[approach].fits is not False), answer
            )
        ),
        rivals[0] if rivals else None,
    )


def _decide(
    case: AdviceCase, votes: tuple[Vote, ...], options: Options, refuted: frozenset[str]
) -> tuple[Approach, list[Reason]]:
    counted = [
        vote for vote in votes if not vote.refuted_by and vote.answer.vote is not Approach.NOTHING
    ]
    full = [vote for vote in counted if vote.answer.vote.trains_everything]
    peft = [vote for vote in counted if not vote.answer.vote.trains_everything]
    settled = _settled(case, refuted)
    wants_full = not settled and len(full) > len(peft)
    reasons = [_vote_in_words(full, peft)]
    reasons += [
        Reason(
            f"{vote.rules.claim} does not count here: the lab's evidence contradicts "
            f"{vote.refuted_by}, on which it rests.",
            vote.refuted_by,
        )
        for vote in votes
        if vote.refuted_by
    ]
    if settled and len(full) > len(peft):
        reasons.append(settled)
    order = [Approach.LORA, Approach.QLORA]
    if wants_full:
        order = [Approach.FULL, *order]
    for approach in order:
        option = options[approach]
        why_not = _why_not(case, option)
        if not why_not:
            slow = [_too_slow(option)] if (option.seconds or 0.0) > MAX_RUN_S else []
            return approach, [*reasons, _forecast_in_words(case, option), *slow]
        reasons.append(Reason(why_not, "forecast"))
    possible = [options[each] for each in order if options[each].fits is not False]
    if possible:  # all of them over the budget
        cheapest = min(possible, key=lambda option: option.usd or 0.0)
        text = (
            f"{cheapest.approach.in_words} costs least of what fits; nothing is within the budget."
        )
        return cheapest.approach, [*reasons, Reason(text, "forecast")]
    smallest = min(order, key=lambda each: options[each].need_bytes or 1 << 60)
    return smallest, [*reasons, _nearest(options[smallest])]


def _settled(case: AdviceCase, refuted: frozenset[str]) -> Reason | None:
    """Why it has to be PEFT, whatever the votes say."""
    if case.variants > MANY_VARIANTS:
        text = f"{case.variants:,} variants share one base as adapters; copies cannot be swapped."
        return Reason(text, "C18")
    if case.keeps_general and KEEPING not in refuted:
        return Reason("A frozen base keeps what it could: the adapter can be taken off.", "A5")
    return None


def _vote_in_words(full: list[Vote], peft: list[Vote]) -> Reason:
    side, other = (full, peft) if len(full) > len(peft) else (peft, full)
    name = "full fine-tuning" if side is full else "PEFT"
    claims = ", ".join(vote.rules.name for vote in side)
    against = ", ".join(vote.rules.name for vote in other)
    count = len(full) + len(peft)
    text = f"{len(side)} of the {count} rule sets that count here say {name} ({claims})"
    if other:
        text += f"; {against} {'says' if len(other) == 1 else 'say'} otherwise"
    return Reason(f"{text}. What fits is asked apart.", claims)


def _why_not(case: AdviceCase, option: Option) -> str:
    """Why an approach is out, by its forecast; "" where nothing speaks against it."""
    title = option.approach.in_words
    if option.refused:
        return f"{title} cannot run here: {option.refused}"
    if option.fits is False:
        room = in_gb(option.room_bytes)
        return f"{title} does not fit: it needs {in_gb(option.need_bytes)} of {room}."
    if case.budget_usd is not None and option.usd is not None and option.usd > case.budget_usd:
        return f"{title} costs {usd(option.usd)}, more than the budget of {usd(case.budget_usd)}."
    return ""


def _out_in_words(option: Option) -> str:
    name = option.approach.in_words
    if option.refused or option.need_bytes is None:
        return f"{name} cannot run here: {option.refused}"
    # one without bfloat16 would train in float32, for which more is needed
    cards = [card for card in gpu_table.holding(option.need_bytes) if card.has_bf16]
    where = f"The smallest card that holds it: {cards[0].name}." if cards else "No card holds it."
    need, room = in_gb(option.need_bytes), in_gb(option.room_bytes)
    return f"{name} does not fit: {need} needed, {room} there. {where}"


def _forecast_in_words(case: AdviceCase, option: Option) -> Reason:
    forecast = option.forecast
    needed = forecast.memory.needed_bytes if forecast else None
    text = (
        f"{option.approach.in_words} fits" if option.fits else f"{option.approach.in_words} needs"
    )
    room = f" of {in_gb(option.room_bytes)}" if option.room_bytes else ""
    parts = [f"{text}: {in_gb(needed)}{room} on {_place(case)}"]
    if option.seconds is not None:
        parts.append(f"about {duration(option.seconds)} of training")
    if option.energy_wh is not None:
        is_large = option.energy_wh >= 1000
        parts.append(
            f"{option.energy_wh / 1000:,.1f} kWh" if is_large else f"{option.energy_wh:,.0f} Wh"
        )
    if option.usd is not None:
        parts.append(usd(option.usd))
    model = "" if case.model else f" (computed for {model_of(case).partition(':')[2]})"
    return Reason(f"{', '.join(parts)}{model}.", "forecast")


def _too_slow(option: Option) -> Reason:
    days = (option.seconds or 0.0) / 86_400
    return Reason(
        f"That is {quantity(days, 'day')}: take a smaller model, fewer examples or a faster card.",
        "forecast",
    )


def _place(case: AdviceCase) -> str:
    return f"a card of {case.gpu_gb:g} GB" if case.gpu_gb is not None else device_in_words(case)


def _nearest(option: Option) -> Reason:
    name = option.approach.in_words
    if option.need_bytes is None:
        return Reason(f"{name} comes nearest.", "forecast")
    return Reason(
        f"Nothing fits as it is: {name} comes nearest and needs {in_gb(option.need_bytes)}. Take a "
        "smaller model or a larger card.",
        "forecast",
    )


def _from_evidence(case: AdviceCase) -> list[Reason]:
    """What the lab's own races have shown of the claims that this case depends on."""
    claims = CLAIMS_OF_GOAL[case.goal] + (CLAIMS_OF_KEEPING if case.keeps_general else ())
    reasons = []
    for claim in claims:
        for each in evidence.of_claim(claim)[:1]:
            verdict = each.verdicts[claim]
            where = ", ".join(part for part in (each.base, each.date) if part)
            aside = "" if is_similar(each, case) else " A model of another size: it does not count."
            reasons.append(Reason(f"Measured ({where}): {verdict.sentence}{aside}", claim))
    first = claims[0]
    if not any(reason.source == first for reason in reasons):
        says = get_claim(first).says
        reasons.append(Reason(f"Claimed, and not tested by the lab yet: {says}", first))
    return reasons


def in_gb(size: float | None) -> str:
    return "–" if size is None else f"{size / 1e9:,.1f} GB"


def usd(value: float) -> str:
    return f"{value:,.2f} USD" if value < 100 else f"{value:,.0f} USD"
