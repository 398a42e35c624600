"""Which method, what it costs, and what would change the answer."""

import streamlit as st

from lab.advise import recommend
from lab.ui import advisor_case, advisor_start, advisor_tables, advisor_view
from lab.ui.fragments import fragment
from lab.ui.frame import head
from lab.ui.markdown_safety import user_errors

actions = head("Advisor")
with actions.popover("Copy link", icon=":material/link:", key="advise.link"):
    st.caption("This address opens the page with your case.")
    st.code(str(st.context.url or ""), language=None, wrap_lines=True)
actions.button(
    "Start over", icon=":material/restart_alt:", key="advise.forget", on_click=advisor_case.forget
)

grid = st.grid(2, min_column_width=440, gap="medium")
left, right = grid.cell(), grid.cell()
with left.container(border=True), user_errors():
    case = advisor_case.parsed(advisor_case.fields())
votes = recommend.votes_on(case, recommend.refuted_claims(case))
job = advisor_view.job_for(case)
job.look("advise")
at_start = (job.advice is not None, job.is_complete)
with right.container(border=True):

    @fragment(run_every=None if job.is_complete else 0.5)
    def answer() -> None:
        job.look("advise")
        advisor_view.recommendation(job)
        if (job.advice is not None, job.is_complete) != at_start:
            st.rerun()

    answer()
    if job.advice is not None:
        advisor_start.buttons(job.advice)

st.subheader("Six rule sets", anchor=False)
approach = job.advice.approach if job.advice else None
advisor_view.rule_sets(votes, approach)

if job.advice is not None:
    settings, costs, cards = st.tabs(
        ["Settings", "Costs", "Hardware"], key="advise.tab", on_change="rerun", bind="query-params"
    )
    if settings.open:
        with settings:
            advisor_view.settings_table(job.advice)
    if costs.open:
        with costs:
            advisor_tables.bill(job.advice)
            with st.expander("Prices", icon=":material/payments:"):
                advisor_tables.price_editor()
            st.subheader("What articles print, computed again", anchor=False)
            advisor_tables.printed_figures()
    if cards.open:
        with cards:
            advisor_tables.cards(job.advice)
