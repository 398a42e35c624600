"""Where the pages are, for links and for switching."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from lab.paths import ROOT


def page(name: str) -> str:
    """The path of a page as `st.page_link` and `st.switch_page` take it."""
    return str(ROOT / "pages" / f"{name}.py")


def exists(name: str) -> bool:
    """Whether there is such a page."""
    return (ROOT / "pages" / f"{name}.py").is_file()


def switch(name: str, query: dict[str, str] | None = None) -> None:
    """Go to another page; {} as `query` also drops the parameters that fields are bound to.

    The timers of the browser ask for the fragments of the old page until it hears of the new one.
    Streamlit would answer that after the new page is drawn, and the browser would clear it for the
    old one: a white page. A request for a fragment that is not stored is ignored, and no fragment
    of the new page has the ID of an old one (`fragments`).
    """
    context = get_script_run_ctx()
    if context is not None:
        context.fragment_storage.clear()
    st.switch_page(page(name), query_params=query)


def open_run(run_id: str) -> None:
    """Go to the run's Monitor."""
    switch("monitor", {"run": run_id})


def open_comparison(run_ids: Sequence[str]) -> None:
    """Go to Compare with these runs."""
    switch("compare", {"runs": ",".join(run_ids)})
