"""Worth knowing: mistakes that a claim lists, shown in the form before the run starts."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab.advise import worth_knowing
from lab.advise.worth_knowing import Caution
from lab.ui import claim_links
from lab.ui.markdown_safety import escape_markdown


def of_specs(specs: list[dict[str, Any]]) -> None:
    """What is worth knowing of the runs of the form, each once; nothing where there is nothing."""
    cautions = [caution for spec in specs for caution in worth_knowing.of_spec(spec)]
    show(list(dict.fromkeys([*cautions, *worth_knowing.of_pair(specs)])))


def show(cautions: list[Caution]) -> None:
    if not cautions:
        return
    with st.container(border=True, key="worth-knowing"):
        st.caption("WORTH KNOWING")
        for caution in cautions:
            text = escape_markdown(caution.text)
            st.markdown(f":material/lightbulb: {text} {claim_links.link(caution.claim)}")
