"""Stored text and errors on pages: shown as they are, once, and in place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import streamlit as st

from lab.errors import LabError, SpecError, refusal_of
from lab.ui.frame import end_page
from lab.visible import on_one_line, visible

SPECIAL = re.compile(r"[\\`*_{}\[\]()#+\-.!|<>~$:=&]")
# Pages find links, e-mail addresses, icons, emoji and arrows in text whose backslashes are gone
# already. A word joiner, which draws nothing and breaks no line, keeps their parts apart.
APART = "\u2060"
JOINED = re.compile(
    r"(?<=:)(?=//)"  # http://host
    r"|(?<=www)(?=\.)"
    r"|(?<=@)(?=\S)"  # name@host
    r"|(?<=:)(?=[\w+\-/]+:)"  # :emoji:, :material/icon:
    r"|(?:(?<=^<)|(?<=\s<)|(?<=^-)|(?<=\s-)|(?<=^>)|(?<=\s>)|(?<=^~)|(?<=\s~))(?=[-=>])",  # ->
    re.IGNORECASE,
)


def escape_markdown(text: object) -> str:
    """Text of a person, a model or a file as Markdown that shows it as it is, on one line."""
    line = JOINED.sub(APART, on_one_line(text))
    return SPECIAL.sub(r"\\\g<0>", line)


def escape_lines(text: object) -> str:
    """Lines of a person or a model as Markdown that keeps their breaks and indentation."""
    lines = []
    for line in visible(text).split("\n"):
        spaced = line.expandtabs(4)
        content = spaced.lstrip(" ")
        lines.append("\u00a0" * (len(spaced) - len(content)) + escape_markdown(content))
    return "  \n".join(lines).strip("\n")


def plain(value: Any) -> Any:
    """A stored value for what shows text as it is (tables, code, lists to choose from): the same,
    with everything in it visible."""
    if isinstance(value, dict):
        return {visible(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return visible(value) if isinstance(value, str) else value


def tell(error: LabError) -> None:
    """Show an error in place: what happened, and below it what to do."""
    message = (
        escape_lines(str(error)) if isinstance(error, SpecError) else escape_markdown(error.message)
    )
    st.error(message, icon=":material/error:")
    if error.hint:
        st.caption(escape_markdown(error.hint))


@contextmanager
def _lab_errors() -> Iterator[list[LabError]]:
    """Errors that a person reads, and those of the disk, as a list; a bug goes on its way."""
    errors: list[LabError] = []
    try:
        yield errors
    except (LabError, OSError) as error:
        errors.append(refusal_of(error))


def run_action(action: Callable[[], object]) -> None:
    """Do what a button says, then redraw the page; an error is shown in place."""
    with _lab_errors() as errors:
        action()
    if errors:
        tell(errors[0])
        return
    st.rerun()


@contextmanager
def user_errors() -> Iterator[None]:
    """Show an error that a person reads and end the page there; a bug goes on its way."""
    with _lab_errors() as errors:
        yield
    if errors:
        tell(errors[0])
        end_page()
