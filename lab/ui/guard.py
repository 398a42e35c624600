"""Errors a person reads, shown once and in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import streamlit as st

from lab.errors import LabError


def safe(text: object) -> str:
    """Text of a person or a model, so that Markdown shows it as it is."""
    special = "\\`*_{}[]()#+-.!|<>~$:=&"
    return "".join(f"\\{char}" if char in special else char for char in str(text))


def block(text: str) -> str:
    """Lines of a person or a model as Markdown that keeps their breaks and indentation."""
    lines = []
    for line in text.splitlines():
        words = line.lstrip(" \t")
        indent = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip(" "))
        lines.append("\u00a0" * indent + safe(words))
    return "  \n".join(lines)


def act(action: Callable[[], object]) -> None:
    """Do what a button says, then draw the page anew; a LabError is shown in place."""
    try:
        action()
    except LabError as error:
        st.error(safe(str(error)))
        return
    st.rerun()


@contextmanager
def user_errors() -> Iterator[None]:
    """Show a LabError and end the page there; anything else is a bug and goes on its way."""
    try:
        yield
    except LabError as error:
        st.error(safe(error.message), icon=":material/error:")
        if error.hint:
            st.caption(safe(error.hint))
        st.stop()
