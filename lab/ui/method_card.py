"""The METHOD card of New run: one method with its options, or two on equal terms."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from lab import formatting, methods, presets
from lab.methods import Method
from lab.runs import colours as run_colours
from lab.ui import colours, form, form_fields, form_problems
from lab.ui.markdown_safety import escape_markdown

NAME, QUICK, MORE = "new.method.name", "new.method.quick", "more"
MAIN = 4  # options that are always in sight; a config lists the important ones first
PAIR = "new.pair"


def is_pair() -> bool:
    return presets.pair(st.session_state.get("new.preset") or "") is not None


def card() -> None:
    st.caption("METHODS, ON EQUAL TERMS" if is_pair() else "METHOD")
    if is_pair():
        _pair()
        return
    name = st.session_state[NAME]
    usual = [method.name for method in methods.standard_methods()]
    if st.session_state.get(QUICK) != MORE or name in usual:
        st.session_state[QUICK] = name if name in usual else MORE
    st.segmented_control(
        "Method", [*usual, MORE], key=QUICK, required=True, label_visibility="collapsed", wrap=True,
        format_func=lambda name: "All …" if name == MORE else methods.get(name).title,
        on_change=_choose_usual, persist_state="session",
    )  # fmt: skip
    if st.session_state[QUICK] == MORE or st.session_state.get("new.method.all_shown"):
        st.session_state["new.method.all"] = name
        st.selectbox(
            "All methods", methods.names(), key="new.method.all", on_change=_choose_any,
            format_func=lambda name: methods.get(name).title, persist_state="session",
        )  # fmt: skip
    form_problems.show("method.name")
    method = methods.get(name)
    st.caption(escape_markdown(method.summary))
    form_problems.show("method")
    _options(method)


def _choose_usual() -> None:
    chosen = st.session_state[QUICK]
    st.session_state["new.method.all_shown"] = chosen == MORE
    if chosen != MORE:
        st.session_state[NAME] = chosen


def _choose_any() -> None:
    st.session_state[NAME] = st.session_state["new.method.all"]
    st.session_state["new.method.all_shown"] = True


def _options(method: Method) -> None:
    names = [field.name for field in dataclasses.fields(method.config)]
    section = f"method.{method.name}"
    form_fields.draw(section, method.config, names[:MAIN])
    form_fields.folded(
        f"Advanced {escape_markdown(method.title)} options", section, method.config, names[MAIN:]
    )


def fill_pair(pair: presets.Pair) -> None:
    """The two sides of a pair, each at its method's learning rate."""
    for side, name in zip("ab", pair.methods, strict=True):
        st.session_state[f"{PAIR}.{side}"] = name
        st.session_state[f"{PAIR}.{side}.rate"] = "auto"


def _pair() -> None:
    columns = st.columns(2, gap="small")
    next_two = run_colours.next_colours(2)
    for side, other, column, colour in zip("ab", "ba", columns, next_two, strict=True):
        with column.container(border=True):
            taken = st.session_state[f"{PAIR}.{other}"]
            name = st.selectbox(
                f"{colours.dot(colour)} Method",
                [name for name in methods.names() if name != taken],
                key=f"{PAIR}.{side}", format_func=lambda name: methods.get(name).title,
                persist_state="session",
            )  # fmt: skip
            method = methods.get(name)
            st.text_input(
                "Learning rate", key=f"{PAIR}.{side}.rate", persist_state="session", live=True,
                help=f"auto: the method's default, {formatting.rate(method.default_lr)}.",
            )  # fmt: skip
            _options(method)


def specs() -> list[dict[str, Any]]:
    """What the form would start: one spec, or one for each side of a pair."""
    if not is_pair():
        return [form.value()]
    both = []
    for side in "ab":
        name = st.session_state[f"{PAIR}.{side}"]
        spec = form.value(name)
        text = str(st.session_state[f"{PAIR}.{side}.rate"] or "").strip()
        try:
            rate: Any = text if text == "auto" else float(text)
        except ValueError:
            rate = text
        spec["train"] = spec["train"] | {"learning_rate": rate}
        spec["name"] = f"{spec['name']} {methods.get(name).title}".strip()[:120]
        both.append(spec)
    return both
