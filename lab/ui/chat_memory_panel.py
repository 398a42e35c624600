"""The memory that the chat holds: when it comes back by itself, and one click for it."""

from __future__ import annotations

import streamlit as st

from lab import formatting
from lab.chat import client
from lab.errors import LabError
from lab.runs import chat_memory
from lab.ui.markdown_safety import run_action


def offer(reason: str, key: str) -> None:
    """The button beside why a run waits, where the chat is why."""
    if chat_memory.HOLDS in reason:
        free_button(key)


def free_button(key: str) -> None:
    if st.button(
        "Unload models", icon=":material/eject:", key=key,
        help="Ends the chat process. Conversations stay, and the next question loads the models "
        f"again. {idle_time()}",
    ):  # fmt: skip
        run_action(_unload)


def idle_time() -> str:
    """When the chat ends by itself, in a sentence; empty where that is not known."""
    health = client.health()
    left = health.ends_in_s if health is not None else None
    return f"Unused, it ends in {formatting.duration(left)}." if left and left > 0 else ""


def _unload() -> None:
    health = client.health()
    if health is not None and health.is_busy:
        raise LabError("An answer is being generated.", "Stop it first.")
    client.end()
