"""Say which run is better at what, how sure that is, and why; the address names the runs."""

import streamlit as st

from lab.ui import compare_curves, compare_export, compare_runs, compare_tabs, compare_verdict
from lab.ui.frame import end_page, head

actions = head("Compare")
runs = compare_runs.chosen()
those = compare_runs.read(runs)
if not those:
    compare_runs.nothing_chosen()
    end_page()

compare_runs.watch(runs)
compare_runs.actions(actions, runs, those)
shown, with_base = compare_runs.pills(those)
compare_export.menu(actions, shown)
if not shown:
    st.caption("All runs are hidden. Click on a pill to show one.")
    end_page()

compare_verdict.card(shown, is_part=len(shown) < len(those))
compare_curves.show(shown, with_base)
compare_tabs.show(shown)
