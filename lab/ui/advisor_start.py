"""From a recommendation to runs: New run filled in, or the pair against its rival in the queue."""

from __future__ import annotations

import copy
from typing import Any

import streamlit as st

from lab.advise import settings, worth_knowing
from lab.advise.recommend import Recommendation
from lab.advise.rules import Approach
from lab.data import catalog as datasets
from lab.spec_sections import DataSpec
from lab.ui import form_problems, links, submit, titles, worth_knowing_view
from lab.ui.markdown_safety import escape_lines, escape_markdown, plain, user_errors
from lab.ui.new_run_view import FILL


def buttons(advice: Recommendation) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Set up this run", key="advise.start", type="primary", icon=":material/tune:",
            help="Opens New run with these settings; you choose the data there.",
        ):  # fmt: skip
            st.session_state[FILL] = settings.trainable(advice.chosen.spec)
            links.switch("new_run", {})  # drops those of the case
        if advice.rival is not None:
            rival = advice.rival
            with st.popover(
                f"Queue it against {rival.in_words}", icon=":material/compare_arrows:",
                key="advise.pair",
            ):  # fmt: skip
                _pair(advice, rival)
    if advice.rival is None:
        st.caption("There is nothing to compare it with on this hardware.")
    for reason in advice.ruled_out:
        st.caption(f":material/block: {escape_markdown(reason)}")


def _pair(advice: Recommendation, rival: Approach) -> None:
    st.caption(
        "Two runs with the same base, data, order, epochs, batch and seed, each at its own "
        "learning rate. Both are queued."
    )
    known = [dataset.id for dataset in datasets.built_in()]
    options = [*known, *(upload.id for upload in datasets.uploads())]
    dataset = st.selectbox(
        "Dataset", options, options.index(DataSpec().dataset), key="advise.dataset",
        format_func=lambda option: str(plain(titles.dataset(option))),
    )  # fmt: skip
    worth_knowing_view.show(worth_knowing.of_pair(pair(advice, rival, dataset)))
    if st.button("Queue both", key="advise.queue", icon=":material/playlist_add:"):
        with user_errors():
            runs = submit.start_all(pair(advice, rival, dataset), submit.ticket())
        if runs:
            links.open_comparison([run.id for run in runs])
        for field, message in form_problems.of_fields().items():
            st.error(escape_lines(f"{field}: {message}"), icon=":material/error:")


def pair(advice: Recommendation, rival: Approach, dataset: str) -> list[dict[str, Any]]:
    """The recommended run and its rival's, on equal terms: the rows of a pass, too."""
    specs = []
    rows = min(
        advice.options[approach].spec["train"]["batch_size"]
        for approach in (advice.approach, rival)
    )
    for approach in (advice.approach, rival):
        spec = copy.deepcopy(settings.trainable(settings.spec_of(advice.case, approach, rows)))
        spec["data"]["dataset"] = dataset
        specs.append(spec)
    return specs
