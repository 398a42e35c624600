"""What articles claim, beside what this lab computes, simulates and measures."""

import streamlit as st

from lab.advise import claims
from lab.ui import claims_view
from lab.ui.fragments import fragment
from lab.ui.frame import head

head("Claims")
wanted = claims_view.wanted_id()
at_rest = claims_view.job_for(wanted).is_complete and not claims_view.is_testing()


@fragment(run_every=None if at_rest else 1.5)
def body() -> None:
    job = claims_view.job_for(wanted)
    job.look("claims")
    claims_view.progress(job)
    ids = claims_view.shown_ids(job, claims_view.filters(job))
    chosen = claims_view.chosen_id(ids, wanted)
    if chosen:
        grid = st.grid(2, min_column_width=500, gap="medium")
        with grid.cell():
            claims_view.table(job, ids, wanted, is_narrow=True)
        with grid.cell().container(border=True):
            claims_view.panel(claims.get(chosen), job.findings.get(chosen))
    else:
        st.caption("Choose a claim to see its calculation, its source and its test.")
        claims_view.table(job, ids, wanted, is_narrow=False)
    if job.is_complete and not at_rest and not claims_view.is_testing():
        st.rerun()


body()
