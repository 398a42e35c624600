"""The conversations on the disk: open, rename, delete and take away."""

from __future__ import annotations

import json

import streamlit as st

from lab import formatting
from lab.chat import conversations
from lab.chat.conversations import Chat
from lab.errors import LabError
from lab.ui import chat_panes
from lab.ui.markdown_safety import escape_markdown, run_action
from lab.visible import visible

MAX_LISTED = 40  # in the list; a search finds the others


def current() -> Chat | None:
    """The conversation of the address or of this session; None for a new one."""
    requested = st.session_state.pop("chat.open", None)
    requested = requested or st.query_params.get("c") or st.session_state.get("chat.c")
    if not requested:
        return None
    try:
        chat = conversations.read(str(requested))
    except LabError:
        close()
        return None
    open_chat(chat.id)
    return chat


def open_chat(chat_id: str) -> None:
    st.session_state["chat.c"] = chat_id
    st.query_params["c"] = chat_id


def close() -> None:
    """Begin a new conversation."""
    st.session_state.pop("chat.c", None)
    st.query_params.pop("c", None)


@st.dialog("Conversations", width="large")
def show() -> None:
    # those of a blind vote would tell who answered what
    chats = [chat for chat in conversations.all_conversations() if not chat.vote]
    if not chats:
        st.caption("No conversations yet. Each is saved on this machine, from the first question.")
        return
    words = st.text_input("Search", key="history.search", placeholder="Words of a conversation")
    matches = [chat for chat in chats if contains(chat, words)]
    st.caption(f"{len(matches)} of {formatting.quantity(len(chats), 'conversation')}")
    for chat in matches[:MAX_LISTED]:
        _row(chat)


def contains(chat: Chat, words: str) -> bool:
    """Whether every word is in a question, an answer, or the name."""
    texts = [chat.name]
    for turn in chat.turns:
        texts += [turn.question, *(answer.text for answer in turn.answers.values())]
    whole = " ".join(texts).lower()
    return all(word in whole for word in words.lower().split())


def _row(chat: Chat) -> None:
    row = st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    )
    dots = " ".join(chat_panes.pane(name).dot for name in chat.models)
    turns = formatting.quantity(len(chat.turns), "turn")
    row.markdown(
        f"{dots} {escape_markdown(chat.name)}  \n:gray[{turns} · {formatting.when(chat.changed)}]",
        width="stretch",
    )
    if row.button("Open", key=f"history.open.{chat.id}"):
        st.session_state["chat.open"] = chat.id
        st.rerun()
    with row.popover(":material/more_horiz:", key=f"history.more.{chat.id}"):
        title = st.text_input("Name", chat.name, key=f"history.name.{chat.id}")
        if st.button("Rename", key=f"history.rename.{chat.id}"):
            run_action(lambda: conversations.rename(chat.id, title))
        st.download_button(
            "Markdown", visible(conversations.as_markdown(chat)), f"chat-{chat.id}.md",
            icon=":material/download:", key=f"history.markdown.{chat.id}",
        )  # fmt: skip
        st.download_button(
            "JSON", json.dumps(chat.to_json(), ensure_ascii=False), f"chat-{chat.id}.json",
            "application/json", icon=":material/download:", key=f"history.json.{chat.id}",
        )  # fmt: skip
        if st.button(
            "Delete this conversation", icon=":material/delete:", key=f"history.delete.{chat.id}"
        ):
            run_action(lambda: conversations.delete(chat.id))
