"""A result as a plain LoRA of the rank that it needs: the last part of the Rank tab."""

from __future__ import annotations

import streamlit as st

from lab import dataclass_json
from lab.background_job import JobRecord
from lab.export import lora_form
from lab.formatting import quantity, size
from lab.paths import RunDir
from lab.rank import convert
from lab.rank.spectrum import ENERGY
from lab.ui import job_panel, links
from lab.ui.markdown_safety import escape_markdown, run_action

OUTSIDE = (
    0.01  # of the energy, from which on it is said that updates outside linear layers are lost
)


def show(run: RunDir) -> None:
    """Choose how much of each update stays; what the conversion chose and cost."""
    st.markdown("**As a LoRA of lower rank**")
    if reason := convert.why_not(run):
        st.caption(f":material/block: No conversion: {escape_markdown(reason)}")
        return
    st.caption(
        "Each layer gets the lowest rank that keeps this share of its update's energy. The new "
        "result works wherever a LoRA does; the change of its answers is measured. Of a result "
        "that PEFT cannot convert, embeddings, norms and biases stay as the base has them."
    )
    if job_panel.follow(convert.job_file(run), "compare.rank.convert.stop", _outcome):
        return
    row = st.container(horizontal=True, vertical_alignment="bottom")
    energy = row.number_input(
        "Energy kept", lora_form.LEAST_ENERGY, lora_form.MOST_ENERGY, ENERGY, 0.01,
        key="compare.rank.energy", format="%.4g", width=160,
        help="Share of the sum of squared singular values of each layer's update.",
    )  # fmt: skip
    if row.button("Convert to LoRA", icon=":material/compress:", key="compare.rank.convert"):
        run_action(lambda: convert.start(run, float(energy)))


def shown_loss(value: float | None) -> str:
    """One that was measured, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def _outcome(job: JobRecord) -> None:
    outcome = dataclass_json.read(convert.Conversion, job.result)
    if outcome is None or not outcome.ranks:
        return
    ranks = sorted(outcome.ranks.values())
    st.markdown(
        f"{100 * outcome.energy:g} % of the energy: rank {ranks[0]} to {ranks[-1]}, median "
        f"{ranks[len(ranks) // 2]}, in {quantity(len(ranks), 'layer')}; "
        f"{size(outcome.bytes_before)} → {size(outcome.bytes_after)}. Evaluation loss "
        f"{shown_loss(outcome.loss_before)} → **{shown_loss(outcome.loss_after)}**. Largest logit "
        f"difference {outcome.largest_difference:.2g}, {100 * outcome.share_of_spread:.3g} % of "
        f"their spread; same top token {100 * outcome.same_top:.1f} %."
    )
    if outcome.fidelity**2 < outcome.energy - OUTSIDE:
        st.caption(
            f"The LoRA holds {100 * outcome.fidelity:.0f} % of the length of all updates: "
            "embeddings stay as the base has them."
        )
    if outcome.base_note:
        st.caption(escape_markdown(outcome.base_note))
    if outcome.note:
        st.caption(f"The evaluation loss was not measured. {escape_markdown(outcome.note)}")
    st.page_link(
        links.page("results"), label="Open the converted result", icon=":material/inventory_2:",
        query_params={"run": outcome.run},
    )  # fmt: skip
