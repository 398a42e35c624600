"""The Advisor: the recommendation as it comes, the rule sets at once, costs and hardware."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import streamlit as st

from lab import formatting, methods, schema
from lab.advise import costs, recommend, settings, worth_knowing
from lab.advise.case import AdviceCase
from lab.advise.recommend import Recommendation, Vote, in_gb, usd
from lab.advise.rules import Approach
from lab.recent import Recent
from lab.spec import SECTIONS
from lab.ui import claim_links
from lab.ui.markdown_safety import escape_markdown
from lab.ui.waiting import BackgroundJob, failure


class AdviceJob(BackgroundJob):
    """The recommendation for one case, from three forecasts; then what another size of the model
    would change, which takes some more."""

    def __init__(self, case: AdviceCase) -> None:
        super().__init__()
        self.case = case
        self.advice: Recommendation | None = None

    def ask(self) -> None:
        self.advice = recommend.decide(self.case, recommend.forecast_all(self.case))
        self.advice = recommend.with_other_sizes(self.advice)


# What an approach is, for who meets its name for the first time
MEANINGS = {
    Approach.FULL: "Every weight trains. The result is a whole model.",
    Approach.LORA: "A small adapter trains next to the frozen model. The result is a file of some "
    "megabytes, used with the model.",
    Approach.QLORA: "LoRA on a model that is stored in 4 bits: less memory, a little slower.",
}

_jobs: Recent[str, AdviceJob] = Recent(64)


def job_for(case: AdviceCase) -> AdviceJob:
    """Begun at the first look, and shared by all who look."""
    key = json.dumps(dataclasses.asdict(case), sort_keys=True)
    return _jobs.get_or(key, lambda: AdviceJob(case).start(), is_stale=lambda job: job.is_stale)


def recommendation(job: AdviceJob) -> None:
    """The card at the right: what to do, whether it fits, how long and for how much."""
    st.caption("RECOMMENDED")
    advice = job.advice
    failure(job, "advise")
    if advice is None:
        if job.error is not None:
            return
        st.skeleton(height=190)
        st.caption("Forecasting full, LoRA and QLoRA on this hardware …")
        return
    st.markdown(f"### {_headline(advice)}")
    st.caption(MEANINGS[advice.approach])
    st.markdown(_facts(advice))
    if advice.chosen.usd is not None:
        low, high = (usd(count * advice.chosen.usd) for count in costs.EXPERIMENTS)
        runs = "{} to {} runs".format(*costs.EXPERIMENTS)
        link = claim_links.link("C19")
        st.caption(f"{runs} until the settings are right ({link}): {low} to {high}")
    _why(advice)
    st.markdown(f"**What would change it** {escape_markdown(_changes(advice))}")
    if not job.is_complete:
        st.caption("Trying models of other sizes …")
    for caution in _cautions(advice):
        link = claim_links.link(caution.claim)
        st.markdown(f":material/lightbulb: {escape_markdown(caution.text)} {link}")


def _headline(advice: Recommendation) -> str:
    """ "LoRA, rank 16, all linear layers"."""
    method = methods.get(advice.method)
    parts = [method.title]
    options = advice.chosen.spec["method"]
    if "rank" in options:
        parts.append(f"rank {options['rank']}")
    if options.get("target_modules") == "all-linear":
        parts.append("all linear layers")
    return escape_markdown(", ".join(parts))


def _facts(advice: Recommendation) -> str:
    """ "fits: 20.0 of 24.9 GB · 30 min · 0.17 USD"."""
    option = advice.chosen
    if option.refused:
        return f":red[:material/error: {escape_markdown(option.refused)}]"
    forecast = option.forecast
    needed = forecast.memory.needed_bytes if forecast else None
    room = f" of {in_gb(option.room_bytes)}" if option.room_bytes else ""
    text = escape_markdown(f"{in_gb(needed)}{room}")
    fits = {
        True: f":green[:material/check_circle: **fits**] {text}",
        False: f":red[:material/error: **does not fit**] {text}",
        None: f":material/memory_alt: {text}",
    }[option.fits]
    parts = [fits]
    if option.seconds is not None:
        parts.append(f":material/timer: about {formatting.duration(option.seconds)}")
    if option.usd is not None:
        price, unit = costs.hour_price(advice)
        dated = f"({price.usd:g} USD {unit}, {price.date})" if price else ""
        parts.append(f":material/payments: {usd(option.usd)} :gray[{escape_markdown(dated)}]")
    elif option.seconds is not None:
        parts.append(":material/payments: – :gray[no price or power is known for this hardware]")
    return " · ".join(parts)


def _why(advice: Recommendation) -> None:
    lines = [
        f"- {escape_markdown(reason.text)}{_source(reason.source)}" for reason in advice.reasons[:5]
    ]
    st.markdown("**Why**\n" + "\n".join(lines))


def _source(source: str) -> str:
    """A link where the source is one claim."""
    return f" {claim_links.link(source)}" if claim_links.is_claim(source) else ""


def _changes(advice: Recommendation) -> str:
    return advice.would_change[0].upper() + advice.would_change[1:]


def _cautions(advice: Recommendation) -> list[worth_knowing.Caution]:
    """What C25 lists, of this case."""
    spec = advice.chosen.spec
    if advice.case.goal == "continued pretraining":
        spec = spec | {"data": spec["data"] | {"objective": "pretraining"}}
    cautions = worth_knowing.of_spec(spec)
    merge = worth_knowing.of_result(advice.method)
    if merge and advice.case.variants > 1:
        cautions.append(worth_knowing.Caution("merge", merge, "C25"))
    return cautions


def rule_sets(votes: tuple[Vote, ...], approach: Approach | None) -> None:
    """Side by side, those that disagree with the recommendation first."""
    rows = []
    for vote in sorted(votes, key=lambda vote: agrees(vote, approach)):
        claim = vote.rules.claim
        name = claim_links.link(claim) if claim_links.is_claim(claim) else ""
        mark = {True: ":green[:material/check: yes]", False: ":orange[:material/close: no]"}
        is_same = agrees(vote, approach)
        rows.append(
            {
                "Rule": f"{name} {escape_markdown(vote.rules.title)}".strip(),
                "Answer": f"**{escape_markdown(vote.answer.answer)}**",
                "Agrees": "…" if approach is None else mark[is_same],
                "Reason": escape_markdown(vote.answer.reason),
                "Source": escape_markdown(vote.rules.source),
            }
        )
    st.table(rows, border="horizontal", hide_index=True)


def agrees(vote: Vote, approach: Approach | None) -> bool:
    """PEFT stands for LoRA and QLoRA."""
    if approach is None:
        return True
    answer = vote.answer.approach
    if answer is Approach.PEFT:
        return not approach.trains_everything
    return answer is approach


def settings_table(advice: Recommendation) -> None:
    """Each setting with the claim that it follows."""
    rows = [
        {
            "Setting": escape_markdown(_title(setting.field, advice.method)),
            "Value": escape_markdown(_value(setting.value)),
            "Follows": claim_links.link(setting.claim),
            "Why": escape_markdown(setting.why),
        }
        for setting in settings.reasons(advice.case, advice.approach)
    ]
    train = advice.chosen.spec["train"]
    rows.append(
        {
            "Setting": "Batch size × accumulation",
            "Value": f"{train['batch_size']} × {train['gradient_accumulation_steps']}",
            "Follows": claim_links.link("B9" if advice.approach is Approach.FULL else "C9"),
            "Why": "16 examples per step; the largest batch that fits",
        }
    )
    st.table(rows, border="horizontal", hide_index=True)


def _title(field: str, method: str) -> str:
    """ "LoRA rank" of method.rank."""
    section, _, name = field.partition(".")
    config = methods.get(method).config if section == "method" else SECTIONS[section]
    titles = {option.name: option.title for option in schema.describe(config)}
    return titles.get(name, name)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return formatting.rate(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
