"""Where the pages are, for links and for switching."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from lab.paths import ROOT


def page(name: str) -> str:
    """The path of a page as `st.page_link` and `st.switch_page` take it."""
    return str(ROOT / "pages" / f"{name}.py")


def exists(name: str) -> bool:
    """Whether there is such a page."""
    return (ROOT / "pages" / f"{name}.py").is_file()


def open_run(run_id: str) -> None:
    """Go to the run's Monitor."""
    st.switch_page(page("monitor"), query_params={"run": run_id})


def open_comparison(run_ids: Sequence[str]) -> None:
    """Go to Compare with these runs."""
    st.switch_page(page("compare"), query_params={"runs": ",".join(run_ids)})
