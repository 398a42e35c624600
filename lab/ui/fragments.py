"""Parts of a page that are drawn again by themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx


def fragment(function: Any = None, *, run_every: float | None = None) -> Any:
    """`st.fragment` whose ID belongs to the page that it is drawn on.

    Streamlit makes the ID of the function's name and place, which the same part has on two pages.
    After a switch of pages the browser's timer of the old page, sent a moment before, would name a
    part of the new one; Streamlit would answer for the old page, and the browser would clear the
    new one for it.
    """
    if function is None:
        return functools.partial(fragment, run_every=run_every)
    draw: Callable[..., Any] = function

    @functools.wraps(draw)
    def on_this_page(*arguments: Any, **named: Any) -> Any:
        context = get_script_run_ctx()

        @functools.wraps(draw)
        def of_page(*arguments: Any, **named: Any) -> Any:
            return draw(*arguments, **named)

        if context is not None:
            of_page.__qualname__ += f" of {context.page_script_hash}"
        return st.fragment(of_page, run_every=run_every)(*arguments, **named)

    return on_this_page
