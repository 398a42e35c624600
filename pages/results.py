"""Take a trained model away, and know that it is the one that was measured."""

import streamlit as st

from lab.ui import results_forms, results_tabs, results_view
from lab.ui.frame import head

actions = head("Results")
run = results_view.choose()
with actions:
    results_view.pick(run)

results_view.title(run)
results_view.cards(run)
results_view.proofs(run)

draw = {
    "Use it": results_tabs.use,
    "Combine adapters": results_forms.combine_form,
    "Push to the Hub": results_forms.push_form,
    "Serve": results_forms.serve,
    "Files and hashes": results_tabs.files,
}
for name, tab in zip(draw, st.tabs(list(draw), key="results.tab", on_change="rerun"), strict=True):
    if tab.open:  # what is not seen is not drawn
        with tab:
            draw[name](run)
