"""How the models of a chat answer: the same settings for all, in a popover, kept in the session."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from lab import formatting, schema
from lab.chat import client
from lab.chat.conversations import Chat
from lab.chat.requests import Bounds
from lab.ui import chat_memory_panel, chat_panes
from lab.ui.markdown_safety import escape_markdown

FIELDS = {field.name: field for field in dataclasses.fields(Bounds)}
DEFAULTS: dict[str, Any] = {
    "temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "max_tokens": 96,
    "seed": 0, "stop": "",
}  # fmt: skip


def settings(names: list[str], chat: Chat | None) -> dict[str, Any]:
    """The fields of a request, drawn in the popover of the page's head."""
    for name in FIELDS.keys() & DEFAULTS.keys() - {"stop"}:
        st.session_state.setdefault(f"chat.{name}", DEFAULTS[name])
    st.session_state.setdefault("chat.stop_strings", DEFAULTS["stop"])
    if chat is not None and chat.turns:
        _continue(chat, names)
    suggested = chat_panes.system_prompt_of(names)
    if st.session_state.get("chat.system_of") != suggested:
        st.session_state["chat.system_of"] = suggested
        st.session_state["chat.system"] = suggested
    system = st.text_area(
        "System prompt", key="chat.system", height=90, persist_state="session",
        help="Default: the system prompt used in training. Empty: the chat "
        "template's own, if it has one.",
    )  # fmt: skip
    left, right = st.columns(2)
    values: dict[str, Any] = {"system_prompt": system or ""}
    with left:
        values["temperature"] = _number("temperature", 0.05)
        values["top_p"] = _number("top_p", 0.05)
        values["max_tokens"] = _number("max_tokens", 1)
    with right:
        values["repetition_penalty"] = _number("repetition_penalty", 0.05)
        values["top_k"] = _number("top_k", 1)
        values["seed"] = _number("seed", 1)
    stop = st.text_input(
        "Stop strings", key="chat.stop_strings", persist_state="session",
        help="An answer ends before the first of them. Separate several with |.",
    )  # fmt: skip
    values["stop"] = [string for string in stop.split("|") if string.strip()][:8] or None
    if st.button("Reset", icon=":material/restart_alt:", key="chat.reset"):
        for name in ("chat.system_of", "chat.system", "chat.stop_strings"):
            st.session_state.pop(name, None)
        for name in FIELDS:
            st.session_state.pop(f"chat.{name}", None)
        st.rerun()
    return values


def _continue(chat: Chat, names: list[str]) -> None:
    """Once in a session: a conversation continues with the settings of its last turn, whether the
    page was reloaded, a link was opened or it was chosen in the history."""
    if st.session_state.get("chat.settings_of") == chat.id:
        return
    st.session_state["chat.settings_of"] = chat.id
    stored = chat.turns[-1].settings
    for name in FIELDS.keys() & DEFAULTS.keys() - {"stop"}:
        wrong, value = schema.validate(
            stored.get(name), type(DEFAULTS[name]), FIELDS[name].metadata
        )
        if not wrong:  # its file may be damaged
            st.session_state[f"chat.{name}"] = value
    wrong, stop = schema.validate(stored.get("stop"), list[str] | None, FIELDS["stop"].metadata)
    if not wrong:
        st.session_state["chat.stop_strings"] = "|".join(stop or ())
    wrong, system = schema.validate(
        stored.get("system_prompt"), str, FIELDS["system_prompt"].metadata
    )
    if not wrong:
        st.session_state["chat.system_of"] = chat_panes.system_prompt_of(names)
        st.session_state["chat.system"] = system


def _number(name: str, step: float) -> Any:
    limits = FIELDS[name].metadata
    kind = type(DEFAULTS[name])
    low = limits.get("min", limits.get("above", 0) + step)
    low = min(low, st.session_state[f"chat.{name}"])  # the API takes values between bound and step
    return st.number_input(
        limits["title"], kind(low), kind(limits["max"]), step=kind(step), key=f"chat.{name}",
        help=limits["help"], persist_state="session",
    )  # fmt: skip


def summary(values: dict[str, Any]) -> str:
    """One line of Markdown: what is the same for all models."""
    parts = ["greedy" if values["temperature"] == 0 else f"temperature {values['temperature']:g}"]
    if values["temperature"]:
        parts += [f"top-p {values['top_p']:g}"] if values["top_p"] != 1 else []
        parts += [f"top-k {values['top_k']}"] if values["top_k"] else []
        parts.append(f"seed {values['seed']}")
    if values["repetition_penalty"] != 1:
        parts.append(f"repetition penalty {values['repetition_penalty']:g}")
    parts.append(formatting.quantity(values["max_tokens"], "new token"))
    if values["stop"]:
        parts.append("stop at " + ", ".join(escape_markdown(repr(text)) for text in values["stop"]))
    system = values["system_prompt"]
    parts.append(
        f"system prompt “{escape_markdown(system[:60])}”" if system else "no system prompt"
    )
    return "Same for all: " + " · ".join(parts)


def show_loaded() -> None:
    """Which models are in memory, and the way to free it; for the end of a page, since models are
    loaded for its answers."""
    st.divider()
    health = client.health()
    if health is None:
        st.caption("No model is in memory. The first question loads them.")
        return
    sizes = health.bytes
    count = formatting.quantity(len(health.loaded), "model")
    used = f", {formatting.size(sum(sizes.values()))}" if sizes else ""
    ends = health.ends_in_s
    they = "It is" if len(health.loaded) == 1 else "They are"
    idle = f" {they} unloaded in {formatting.duration(ends)}." if ends and ends > 0 else ""
    st.caption(f"{count} in memory{used}.{idle}")
    for name, size in sizes.items():
        st.caption(f"{chat_panes.pane(name).heading} · {formatting.size(size)}")
    chat_memory_panel.free_button("chat.free")
