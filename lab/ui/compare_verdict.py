"""The card that Compare begins with: the verdict, and beside it the equal terms."""

from __future__ import annotations

import streamlit as st

from lab.compare.contestants import Contestant
from lab.compare.equal_terms import EqualTerms, equal_terms
from lab.compare.verdict import ComparisonVerdict, verdict
from lab.formatting import quantity
from lab.ui import links
from lab.ui.compare_runs import name_of
from lab.ui.markdown_safety import escape_markdown

ICONS = {
    "loss": "check",
    "peak_bytes": "memory",
    "seconds": "timer",
    "artifact_bytes": "save",
    "energy_wh": "bolt",
    "forgetting": "history",
}
REASONS = 6  # that are listed


def card(shown: list[Contestant], is_part: bool) -> None:
    """`is_part`: some runs are hidden, and the verdict is about the others."""
    terms = equal_terms(shown, name_of, escape_markdown)
    result = verdict(shown, terms, name_of)
    with st.container(border=True, key="compare-verdict"):
        left, right = st.columns([2, 1], gap="medium")
        with left:
            _verdict(result, shown, is_part)
        with right:
            _terms(terms, shown)


def about(shown: list[Contestant], is_part: bool) -> str:
    """ "VERDICT · 22 held-out examples · 3 seeds each · of the runs shown"."""
    parts = ["VERDICT"]
    losses = next((run.losses for each in shown for run in each.runs if run.losses), None)
    if losses is not None:
        parts.append(quantity(len(losses.tokens), "held-out example"))
    seeds = {len(each.runs) for each in shown}
    if len(seeds) == 1 and seeds != {1}:
        parts.append(f"{seeds.pop()} seeds each")
    if is_part:
        parts.append("of the runs shown")
    return " · ".join(parts)


def _verdict(result: ComparisonVerdict, shown: list[Contestant], is_part: bool) -> None:
    st.caption(about(shown, is_part))
    st.markdown(f"### {result.headline}")
    if result.detail:
        st.markdown(result.detail)
    with st.container(horizontal=True, gap="small"):
        for badge in result.badges:
            st.badge(badge.text, icon=f":material/{ICONS[badge.key]}:", color="gray")


def _terms(terms: EqualTerms, shown: list[Contestant]) -> None:
    st.caption("EQUAL TERMS")
    if len(shown) < 2:
        st.markdown("Choose a second run to compare with.")
        return
    icon = "block" if terms.unequal else "balance"
    st.markdown(f"### :material/{icon}: {terms.title}")
    for reason in terms.unequal[:REASONS]:
        st.markdown(f":red[:material/close: {reason}]")
    if rest := len(terms.unequal[REASONS:]):
        st.caption(f"and {quantity(rest, 'more reason')}")
    remarks = [remark for remark in terms.remarks if "not tuned" not in remark]
    text = " ".join(part for part in [terms.same, *remarks] if part)
    if not terms.is_tuned:
        text += f" Learning rates are defaults, not tuned: {_ladder()}."
    if text.strip():
        st.markdown(text)


def _ladder() -> str:
    return "[run a ladder](/race)" if links.exists("race") else "run a ladder"
