"""Fields drawn from dataclasses: title, help and bounds stand beside the field, once, and its
problems below it."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import streamlit as st

from lab import schema
from lab.ui import form, form_problems


def draw(section: str, config: type, names: list[str] | None = None) -> None:
    """Widgets for the fields of `config` (those in `names`, or all), up to four in a row."""
    hints = schema.field_types(config)
    fields = [f for f in dataclasses.fields(config) if names is None or f.name in names]
    if names is not None:
        fields.sort(key=lambda field: names.index(field.name))
    grid = st.grid(4, min_column_width=116, gap="small")
    for field in fields:
        with grid.cell():
            widget(section, field, hints[field.name])
    show_problems(section, [field.name for field in fields])


def folded(label: str, section: str, config: type, names: list[str]) -> None:
    """The fields behind a line that says how many differ from their defaults; it opens by itself
    when one has a problem."""
    if not names:
        return
    changed = changes(section, config, names)
    count = f"{changed} changed" if changed else "all at default"
    state = form.key(section, "fold." + names[0])
    # a new count is a new expander, which would close under the hands of who edits in it;
    # `expanded` does not open one that is already drawn
    if form_problems.any_of(section, names) or st.session_state.get(state):
        st.session_state[state] = True
    with st.expander(f"{label} · {count}", type="compact", key=state, on_change="rerun"):
        draw(section, config, names)


def changes(section: str, config: type, names: list[str]) -> int:
    """How many of the fields hold something else than their default."""
    hints = schema.field_types(config)
    defaults = {field.name: field.default for field in schema.describe(config)}
    fields = {field.name: field for field in dataclasses.fields(config)}
    return sum(
        form.parse_input(
            st.session_state.get(form.key(section, name)), hints[name], fields[name].metadata
        )
        != defaults[name]
        for name in names
    )


def show_problems(section: str, names: list[str]) -> None:
    """What is wrong with these fields, in lines over the whole width."""
    root = section.split(".")[0]
    for name in names:
        form_problems.show(f"{root}.{name}" if root else name)


def widget(section: str, field: Any, hint: Any) -> None:
    """The widget that suits the field's type."""
    limits, kinds = field.metadata, form.union_members(hint)
    title = limits["title"]
    shared: dict[str, Any] = {
        "key": form.key(section, field.name),
        "help": help_text(limits),
        "persist_state": "session",
    }
    if "choices" in limits:
        st.selectbox(title, limits["choices"], **shared)
    elif "members" in limits:
        st.multiselect(title, limits["members"], placeholder="none", **shared)
    elif bool in kinds:
        st.toggle(title, **shared)
    elif typing.get_origin(hint) is dict:
        st.text_input(title, placeholder="name=value; name=value", **shared)
    elif limits.get("words") or str in kinds or form.item_kind(hint) is not None:
        if limits.get("multiline"):
            st.text_area(title, height=80, placeholder="from the dataset", **shared)
        else:
            is_number = {int, float} & {*kinds, form.item_kind(hint)}
            example = "such as 8, 8, 16" if form.item_kind(hint) in (int, float) else None
            # bounds of numbers hold while one types; a half-written text has none
            st.text_input(title, placeholder=example, live=bool(is_number), **shared)
    else:
        is_int = int in kinds
        st.number_input(
            title,
            value=None if type(None) in kinds else "min",
            step=1 if is_int else None,
            format=None if is_int else "%g",
            placeholder="not set",
            **shared,
        )


def help_text(limits: Any) -> str:
    """The field's help with its bounds."""
    names = {"min": "at least", "above": "above", "max": "at most"}
    bounds = [f"{names[key]} {schema.number_text(limits[key])}" for key in names if key in limits]
    return f"{limits['help']} ({', '.join(bounds)})" if bounds else str(limits["help"])
