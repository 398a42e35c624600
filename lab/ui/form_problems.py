"""What is wrong with the form: bounds at every change, by the schema alone, and what the last check
by the planner has found."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from lab import methods
from lab.errors import Problem, SpecError
from lab.spec import SECTIONS, RunSpec
from lab.ui import form
from lab.ui.markdown_safety import escape_markdown

NOW, CHECKED, CHECKED_SPEC = "new.problems_now", "new.problems", "new.problems_spec"


def refresh() -> RunSpec:
    """Look at every field as it is now; the spec that the form holds, with defaults in place of
    what is wrong."""
    problems: list[Problem] = []
    spec = RunSpec.parse(form.value(), problems)
    st.session_state[NOW] = {problem.field: problem.message for problem in problems}
    return spec


def keep(error: SpecError, spec: dict[str, Any]) -> None:
    """Remember what a check of `spec` has found, so that each stands under its field."""
    st.session_state[CHECKED] = {problem.field: problem.message for problem in error.problems}
    st.session_state[CHECKED_SPEC] = spec


def forget() -> None:
    st.session_state[CHECKED] = {}
    st.session_state[CHECKED_SPEC] = None


def blocking() -> dict[str, str]:
    """{field: message} of values that no run can have."""
    problems: dict[str, str] = st.session_state.get(NOW, {})
    return problems


def of_fields() -> dict[str, str]:
    """{field: message}, with what a check has found for fields that have not changed since."""
    checked: dict[str, str] = st.session_state.get(CHECKED, {})
    spec = st.session_state.get(CHECKED_SPEC)
    now = form.value() if checked else {}
    unchanged = {
        field: message
        for field, message in checked.items()
        if spec is None or _lookup(spec, field) == _lookup(now, field)
    }
    return unchanged | blocking()


def _lookup(spec: dict[str, Any], field: str) -> Any:
    value: Any = spec
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def title(field: str) -> str:
    """The field's title, for lists: "Learning rate" of train.learning_rate."""
    section, _, name = field.rpartition(".")
    config: Any = SECTIONS.get(section, RunSpec)
    if section == "method":
        config = methods.get(st.session_state["new.method.name"]).config
    titles = {entry.name: entry.metadata.get("title") for entry in dataclasses.fields(config)}
    return str(titles.get(name or field) or field)


def sentence(field: str, message: str) -> str:
    """The problem as Markdown that stands alone."""
    return f"**{escape_markdown(title(field))}** {escape_markdown(message)}"


def show(field: str) -> None:
    """What is wrong with the field, under it."""
    message = of_fields().get(field)
    if message:
        st.markdown(f":red[:material/error: {sentence(field, message)}]")


def any_of(section: str, names: list[str]) -> bool:
    """Whether one of these fields has a problem."""
    root = section.split(".")[0]
    return any(f"{root}.{name}" in of_fields() for name in names)
