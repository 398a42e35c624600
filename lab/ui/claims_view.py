"""Claims: what articles say against what this lab finds; a row opens its sums and its test."""

from __future__ import annotations

import hashlib
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import streamlit as st

from lab.advise import claims, experiments, findings
from lab.advise.claims import Claim, Finding, Ruling, Sum
from lab.recent import Recent
from lab.ui import claim_experiment, links
from lab.ui.markdown_safety import escape_markdown, user_errors
from lab.ui.waiting import BackgroundJob, failure

ICONS = {
    Ruling.CONFIRMED: "check_circle",
    Ruling.OFF: "trending_up",
    Ruling.CONTRADICTS: "error",
    Ruling.DEPENDS: "call_split",
    Ruling.OPEN: "help",
    Ruling.NEEDS: "memory",
}
SIGNS = {
    Ruling.CONFIRMED: "✓",
    Ruling.OFF: "≠",
    Ruling.CONTRADICTS: "✗",
    Ruling.DEPENDS: "~",
    Ruling.OPEN: "?",
    Ruling.NEEDS: "…",
}
WORDS = {Ruling.NEEDS: "needs more than this machine"}
SHOWN_CHARACTERS = 75  # of a claim in the narrow table; the panel has all of it
MAX_CHARACTERS = 125  # in the wide one: three lines
ROW_HEIGHT = 66  # pixels: from 65 on Streamlit wraps sentences and verdicts
AT_ONCE = 3  # the planner works at as many requests beside others
STALE_S = 600.0  # runs and evidence come and go; forecasts are kept anyway


class FindingsJob(BackgroundJob):
    """The lab's value of every claim, a few at once: `wanted` first. `earlier`: what was known
    before, which is shown until it has been found again."""

    def __init__(self, wanted: str, earlier: FindingsJob | None = None) -> None:
        super().__init__()
        self.wanted = wanted
        self.findings: dict[str, Finding] = dict(earlier.findings) if earlier else {}
        self.is_first = not self.findings
        self.began = time.monotonic()
        self.tests = experiments.state()

    def ask(self) -> None:
        ids = [claim.id for claim in claims.all_claims()]
        ids.sort(key=lambda claim_id: claim_id != self.wanted)
        # each in the context of this thread, so that all questions are given up together
        contexts = [copy_context() for _ in ids]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda context, name: context.run(self._find, name), contexts, ids))

    def _find(self, claim_id: str) -> None:
        self.findings[claim_id] = findings.find(claim_id)

    @property
    def is_stale(self) -> bool:
        is_old = self.is_complete and time.monotonic() - self.began > STALE_S
        has_changed = self.tests != experiments.state()
        return super().is_stale or is_old or has_changed


_jobs: Recent[str, FindingsJob] = Recent(1)


def job_for(wanted: str) -> FindingsJob:
    """One for all who look, begun at the first look, and anew once an experiment has ended."""
    before = _jobs.get("all")
    return _jobs.get_or(
        "all", lambda: FindingsJob(wanted, before).start(), is_stale=lambda job: job.is_stale
    )


def is_testing() -> bool:
    """Whether an experiment is under way, so that the page has to look again."""
    return any(not has_ended for _, has_ended in experiments.state())


def wanted_id() -> str:
    """The claim of the address; "" without one. Shows an unknown id as an error."""
    given = st.query_params.get("id", "")
    if not given:
        return ""
    with user_errors():
        return claims.get(given).id


@dataclass(frozen=True)
class ClaimFilter:
    """`verdicts` and `topic`: all if empty; `words`: each stands in the claim or names its id."""

    verdicts: tuple[str, ...] = ()
    topic: str = ""
    words: tuple[str, ...] = ()

    def lets_through(self, claim: Claim, kind: str) -> bool:
        text = f"{claim.id} {claim.says} {claims.topics()[claim.topic]}".casefold()
        return (
            (not self.topic or claim.topic == self.topic)
            and (not self.verdicts or kind in self.verdicts)
            and all(word in text for word in self.words)
        )


def filters(job: FindingsJob) -> ClaimFilter:
    """Verdicts with their counts, topics, and a search."""
    counts = dict.fromkeys(Ruling, 0)
    for finding in list(job.findings.values()):
        counts[finding.kind] += 1
    row = st.container(horizontal=True, vertical_alignment="center")
    chosen = row.pills(
        "Verdict", [verdict.value for verdict in Ruling], selection_mode="multi",
        key="claims.verdict", bind="query-params", label_visibility="collapsed", wrap=True,
        format_func=lambda value: _pill(Ruling(value), counts[Ruling(value)]),
    )  # fmt: skip
    topics = claims.topics()
    topic = row.selectbox(
        "Topic", ["", *topics], key="claims.topic", bind="query-params", width=165,
        format_func=lambda key: topics.get(key, "All topics"), label_visibility="collapsed",
    )  # fmt: skip
    search = row.text_input(
        "Search", key="claims.search", bind="query-params", width=165, type="search",
        placeholder="LoRA times …", label_visibility="collapsed", max_chars=100,
    )  # fmt: skip
    return ClaimFilter(tuple(chosen), str(topic), tuple(str(search or "").casefold().split()))


def _pill(verdict: Ruling, count: int) -> str:
    word = WORDS.get(verdict, verdict.value)
    return f":material/{ICONS[verdict]}: {word} {count}"


def shown_ids(job: FindingsJob, chosen: ClaimFilter) -> list[str]:
    """Of the claims that the filter lets through, in their order."""
    return [
        claim.id for claim in claims.all_claims() if chosen.lets_through(claim, _kind(job, claim))
    ]


def _table_key(ids: list[str]) -> str:
    """Another table has no row chosen."""
    return f"claims.table.{hashlib.sha256(','.join(ids).encode()).hexdigest()[:12]}"


def chosen_id(ids: list[str], requested: str) -> str:
    """The claim of the row that was clicked, else the one of the address; "" for none. Known before
    the table is drawn: without one it has the whole width."""
    state = st.session_state.get(_table_key(ids))
    if state is None:
        return requested
    rows = state["selection"]["rows"]
    return ids[rows[0]] if rows and rows[0] < len(ids) else ""


def table(job: FindingsJob, ids: list[str], requested: str, *, is_narrow: bool) -> None:
    """The rows; `is_narrow` where the panel of a claim stands beside them."""
    if not ids:
        st.info("No claims match this verdict and search.", icon=":material/info:")
        return
    characters = SHOWN_CHARACTERS if is_narrow else MAX_CHARACTERS
    rows = [_row(claims.get(name), job.findings.get(name), characters) for name in ids]
    default: Any = {"selection": {"rows": [ids.index(requested)]}} if requested in ids else None
    columns = ["ID", "Claim", "Verdict", "Printed", "Here"]
    st.dataframe(
        rows,
        hide_index=True,
        key=_table_key(ids),
        on_select="rerun",
        selection_mode="single-row",
        selection_default=default,
        height=min(640, 38 + ROW_HEIGHT * len(ids)),
        row_height=ROW_HEIGHT,
        column_order=columns if is_narrow else [*columns, "How"],
        column_config={
            "ID": st.column_config.TextColumn(width=46),
            "Claim": st.column_config.TextColumn(width=170 if is_narrow else 300),
            "Verdict": st.column_config.TextColumn(width=115 if is_narrow else 130),
            "Printed": st.column_config.TextColumn(width=92),
            "Here": st.column_config.TextColumn(width=100),
            "How": st.column_config.TextColumn(width=120),
        },
    )


def _kind(job: FindingsJob, claim: Claim) -> str:
    finding = job.findings.get(claim.id)
    return finding.kind.value if finding else ""


def _row(claim: Claim, finding: Finding | None, characters: int) -> dict[str, str]:
    says = textwrap.shorten(claim.says, characters, placeholder=" …")
    if finding is None:
        return {"ID": claim.id, "Claim": says, "Verdict": "", "Printed": "",
                "Here": "…", "How": ""}  # fmt: skip
    figure = shown_figure(finding)
    return {
        "ID": claim.id,
        "Claim": says,
        "Verdict": f"{SIGNS[finding.kind]} {finding.verdict}",
        "Printed": f"{figure.printed} {figure.unit}".strip() if figure else "–",
        "Here": f"{figure.here} {figure.unit}".strip()
        if figure
        else textwrap.shorten(finding.value, SHOWN_CHARACTERS // 2, placeholder=" …"),
        "How": finding.how.value,
    }


def shown_figure(finding: Finding) -> Sum | None:
    """The figure that the verdict rests on: the first that contradicts, else the farthest off."""
    wrong = [figure for figure in finding.figures if figure.is_own and not figure.is_within]
    others = wrong or sorted(finding.figures, key=lambda figure: -abs(figure.off_by))
    return others[0] if others else None


def panel(claim: Claim, finding: Finding | None) -> None:
    """One claim: its sentence, its figures with their sums, where they come from, and its test."""
    st.caption(f"CLAIM {claim.id} · {claims.topics()[claim.topic].upper()}")
    st.markdown(escape_markdown(claim.says))
    if finding is None:
        st.skeleton(height=180)
        return
    icon = f":material/{ICONS[finding.kind]}:"
    st.markdown(f"#### {icon} {escape_markdown(finding.verdict[0].upper() + finding.verdict[1:])}")
    if finding.value != "–":
        st.markdown(escape_markdown(finding.value))
    if finding.figures:
        st.table(
            [
                {
                    "": escape_markdown(figure.title),
                    "Printed": escape_markdown(figure.printed),
                    "Here": f"**{escape_markdown(f'{figure.here} {figure.unit}'.strip())}**",
                    "Off by": "" if figure.is_within else escape_markdown(
                        claims.percent(figure.off_by)
                    ),
                    "Sum": escape_markdown(figure.formula),
                }
                for figure in finding.figures
            ],
            border="horizontal", hide_index=True,
        )  # fmt: skip
    if finding.note:
        st.caption(escape_markdown(finding.note))
    origin = " · ".join(part for part in (finding.how.value, finding.date, finding.machine) if part)
    st.caption(escape_markdown(origin[0].upper() + origin[1:]))
    if len(finding.runs) == 2:
        st.page_link(
            links.page("compare"), label="Compare both runs", icon=":material/compare_arrows:",
            query_params={"runs": ",".join(finding.runs)},
        )  # fmt: skip
    claim_experiment.show(claim)


def progress(job: FindingsJob) -> None:
    """How far the values have come; nothing once they are all there."""
    failure(job, "claims")
    if job.is_first and not job.is_complete:
        done, count = len(job.findings), len(claims.all_claims())
        st.progress(done / count, text=f"Computing: {done} of {count} claims")
